import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from norton_det.data import shapes
from norton_det.data.figures import FIGURES, crowd
from norton_det.data.polygons import Figure, Polygon
from norton_det.data.shapes import CATEGORIES, KEYPOINT_NAMES, SKELETON, Scene, draw_scene, write_shapes

TRAIN_IMAGES, VAL_IMAGES = 40, 12


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(np.random.default_rng(seed)) for seed in range(200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets") / "deeper" / "shapes"
    write_shapes(folder, train_images=TRAIN_IMAGES, val_images=VAL_IMAGES)
    return folder


def annotations_of(scenes: list[Scene]) -> list[dict[str, Any]]:
    return [annotation for scene in scenes for annotation in scene.annotations]


def decoded(annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """The annotation's mask as pycocotools reads it."""
    runs = coco_mask.frPyObjects(annotation["segmentation"], height, width)
    return coco_mask.decode(coco_mask.merge(runs) if isinstance(runs, list) else runs).astype(bool)


@pytest.mark.parametrize("split, count", [("train", TRAIN_IMAGES), ("val", VAL_IMAGES)])
def test_pycocotools_reads_both_files_and_they_agree(folder: Path, split: str, count: int) -> None:
    instances = COCO(folder / "annotations" / f"instances_{split}.json")
    people = COCO(folder / "annotations" / f"person_keypoints_{split}.json")

    assert sorted(instances.imgs) == sorted(people.imgs) == list(range(1, count + 1))
    assert len(instances.anns) == len(instances.dataset["annotations"])  # no id twice
    assert {(kind["name"], kind["id"]) for kind in instances.loadCats(instances.getCatIds())} == set(CATEGORIES)
    for image in instances.imgs.values():
        pixels = cv2.imread(str(folder / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)

    [person] = people.loadCats(people.getCatIds())
    assert person["keypoints"] == list(KEYPOINT_NAMES)
    assert person["skeleton"] == [list(bone) for bone in SKELETON]
    assert set(people.anns) == set(instances.getAnnIds(catIds=[person["id"]]))
    for annotation_id, annotation in people.anns.items():
        keys_of_people = {"keypoints", "num_keypoints"}
        assert {k: v for k, v in annotation.items() if k not in keys_of_people} == instances.anns[annotation_id]
        assert len(annotation["keypoints"]) == 51
        assert annotation["num_keypoints"] == np.count_nonzero(annotation["keypoints"][2::3])


def test_keypoints_and_skeleton_are_cocos() -> None:
    assert KEYPOINT_NAMES[:5] == ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
    assert KEYPOINT_NAMES[5:9] == ("left_shoulder", "right_shoulder", "left_elbow", "right_elbow")
    assert KEYPOINT_NAMES[-4:] == ("left_knee", "right_knee", "left_ankle", "right_ankle")
    assert len(KEYPOINT_NAMES) == 17 and len(SKELETON) == 19
    named = {frozenset(KEYPOINT_NAMES[end - 1] for end in bone) for bone in SKELETON}
    assert {frozenset(("left_hip", "left_knee")), frozenset(("right_elbow", "right_wrist"))} <= named


def test_what_stands_in_front_is_seen_and_owns_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def square(left: float, colour: tuple[int, int, int]) -> Figure:
        corners = np.array([[left, 50.0], [left + 60, 50], [left + 60, 110], [left, 110]])
        return Figure((Polygon(corners, colour),))

    figures = [(CATEGORIES[1], square(50, (250, 0, 0)), False), (CATEGORIES[2], square(80, (0, 0, 250)), False)]
    monkeypatch.setattr(shapes, "_choose_figures", lambda *_: figures)
    monkeypatch.setattr(shapes, "lit", lambda rng, image: image)
    scene = draw_scene(np.random.default_rng(0))
    assert scene.image[80, 95].tolist() == [250, 0, 0]
    assert scene.image[80, 125].tolist() == [0, 0, 250]
    front, behind = (decoded(annotation, *scene.image.shape[:2]) for annotation in scene.annotations)
    assert front[80, 95] and not behind[80, 95] and behind[80, 125]


def test_files_have_the_colours_of_their_scenes(folder: Path) -> None:
    seeds = np.random.SeedSequence(0, spawn_key=(0, 4))
    drawn = draw_scene(np.random.default_rng(seeds)).image.astype(int)
    written = np.asarray(Image.open(folder / "train" / "000000000005.jpg")).astype(int)
    assert abs(written - drawn).mean() < 0.5 * abs(written[..., ::-1] - drawn).mean()


@pytest.mark.parametrize("seed", range(5))
def test_a_persons_keypoints_stand_where_their_names_say(seed: int) -> None:
    points = FIGURES["person"](np.random.default_rng(seed)).keypoints
    assert points is not None
    at = dict(zip(KEYPOINT_NAMES, points, strict=True))
    for side in ("left", "right"):
        assert abs(at[f"{side}_eye"][0] - at["nose"][0]) < abs(at[f"{side}_ear"][0] - at["nose"][0])
        heights = [at[f"{side}_{part}"][1] for part in ("eye", "shoulder", "hip", "knee", "ankle")]
        assert heights == sorted(heights)  # downwards
        for start, end in (("shoulder", "elbow"), ("elbow", "wrist")):
            assert np.linalg.norm(at[f"{side}_{start}"] - at[f"{side}_{end}"]) == pytest.approx(0.15)
    assert at["left_hip"][0] > at["right_hip"][0]


def test_masks_boxes_and_areas_agree(scenes: list[Scene]) -> None:
    for scene in scenes:
        height, width = scene.image.shape[:2]
        union = np.zeros((height, width), int)
        for annotation in scene.annotations:
            mask = decoded(annotation, height, width)
            assert mask.sum() == pytest.approx(annotation["area"], rel=0.06, abs=6)
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
            assert annotation["bbox"] == pytest.approx(box, abs=1)
            assert max(annotation["bbox"][2:]) >= 14
            union += mask
        assert (union > 1).mean() < 0.01  # masks hold what is visible, so they do not overlap


def test_polygons_decode_to_the_mask_they_trace() -> None:
    rng = np.random.default_rng(0)
    for name, size in [(name, size) for name in FIGURES for size in (18, 40, 120)]:
        figure = FIGURES[name](rng).placed(np.eye(2) * size, np.array([64.0, 64.0]))
        mask = figure.silhouette(128, 128)
        mask[60:64, 62:66] = False  # at times a hole
        traced = decoded({"segmentation": shapes._polygons(mask)}, 128, 128)
        assert (mask & traced).sum() / (mask | traced).sum() > 0.93, (name, size)
        assert all(len(polygon) >= 6 for polygon in shapes._polygons(mask))


def test_runs_decode_to_the_mask_of_the_crowd() -> None:
    mask = crowd(np.random.default_rng(3)).placed(np.eye(2) * 90, np.array([40.0, 30.0])).silhouette(80, 100)
    for each in (mask, ~mask, np.ones_like(mask)):
        runs = {"segmentation": {"counts": shapes._run_lengths(each), "size": [80, 100]}}
        np.testing.assert_array_equal(decoded(runs, 80, 100), each)


def test_what_scenes_contain(scenes: list[Scene]) -> None:
    annotations = annotations_of(scenes)
    singles = [annotation for annotation in annotations if not annotation["iscrowd"]]
    assert np.mean([annotation["area"] < 32 * 32 for annotation in singles]) >= 0.25
    assert np.mean([annotation["area"] >= 32 * 32 for annotation in singles]) >= 0.25
    assert 0.005 < np.mean([not scene.annotations for scene in scenes]) < 0.1
    assert max(len(scene.annotations) for scene in scenes) <= 8
    counts = [sum(each["category_id"] == kind.id for each in singles) for kind in CATEGORIES]
    assert min(counts) > 0.06 * len(singles)
    crowds = [annotation for annotation in annotations if annotation["iscrowd"]]
    assert len(crowds) >= 3
    assert {each["num_keypoints"] for each in crowds} == {0}
    assert {scene.image.shape[:2] for scene in scenes} == {(192, 256), (256, 192), (256, 256)}
    assert all(scene.image.dtype == np.uint8 for scene in scenes)


def test_keypoints_lie_on_people(scenes: list[Scene]) -> None:
    seen: set[int] = set()
    left_of_right = []
    for scene in scenes:
        height, width = scene.image.shape[:2]
        for annotation in scene.annotations:
            if annotation["category_id"] != CATEGORIES[0].id or annotation["iscrowd"]:
                continue
            points = np.array(annotation["keypoints"]).reshape(17, 3)
            visibility = points[:, 2]
            seen |= set(visibility.tolist())
            assert not points[visibility == 0].any()
            mask = decoded(annotation, height, width)
            nearby = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
            for x, y, v in points[visibility > 0]:
                assert 0 <= x < width and 0 <= y < height
                assert v == 1 or nearby[y, x]
            if visibility[5] and visibility[6]:
                left_of_right.append(points[5, 0] > points[6, 0])
    assert seen == {0, 1, 2}
    assert all(left_of_right)  # people face the viewer: their left is the picture's right


def test_a_covered_keypoint_is_marked_and_one_outside_is_dropped() -> None:
    points = np.full((17, 2), 5.0)
    points[1], points[2] = (8, 2), (10, 3)
    covered = np.zeros((10, 10), bool)
    covered[2, 8] = True
    result = shapes._keypoints(points, covered)
    assert result["keypoints"][:9] == [5, 5, 2, 8, 2, 1, 0, 0, 0]
    assert result["num_keypoints"] == 16


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes(tmp_path: Path, folder: Path) -> None:
    write_shapes(tmp_path / "same", train_images=TRAIN_IMAGES, val_images=VAL_IMAGES)
    assert contents(tmp_path / "same") == contents(folder)

    write_shapes(tmp_path / "shorter", train_images=3, val_images=2)
    write_shapes(tmp_path / "other", train_images=3, val_images=2, seed=1)
    shorter, other = contents(tmp_path / "shorter"), contents(tmp_path / "other")
    images = [name for name in shorter if name.endswith(".jpg")]
    assert len(images) == 5
    assert all(shorter[name] == contents(folder)[name] for name in images)  # whatever the number of images
    assert all(shorter[name] != other[name] for name in images)
    assert shorter["train/000000000001.jpg"] != shorter["val/000000000001.jpg"]


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(rng: np.random.Generator) -> Scene:
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "shapes", train_images=2, val_images=1)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_drawings_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, draw = tmp_path / "shapes", shapes.draw_scene
    draws = 0

    def overtaken(rng: np.random.Generator) -> Scene:
        nonlocal draws
        draws += 1
        if draws == 2:  # another process finishes while this one draws
            write_shapes(target, train_images=1, val_images=1, seed=7)
        return draw(rng)

    monkeypatch.setattr(shapes, "draw_scene", overtaken)
    write_shapes(target, train_images=2, val_images=1)
    assert list(tmp_path.iterdir()) == [target]
    assert len(list((target / "train").iterdir())) == 1
    before = contents(target)
    write_shapes(target, train_images=3, val_images=3)  # one that is there is left as it is
    assert contents(target) == before


def test_foreign_folders_and_wrong_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not the shapes dataset"):
        write_shapes(tmp_path, train_images=1, val_images=1)
    with pytest.raises(ValueError, match="val_images is 0"):
        write_shapes(tmp_path / "shapes", val_images=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_files_hold_plain_numbers(folder: Path) -> None:
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    assert set(content) == {"info", "licenses", "images", "annotations", "categories"}
    for annotation in content["annotations"]:
        if annotation["iscrowd"]:
            assert all(isinstance(run, int) for run in annotation["segmentation"]["counts"])
        else:
            assert all(isinstance(corner, float) for polygon in annotation["segmentation"] for corner in polygon)
