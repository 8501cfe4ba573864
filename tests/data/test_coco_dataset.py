import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from norton_det.data.catalog import DatasetFiles, read_categories
from norton_det.data.coco import CocoDataset
from norton_det.data.reading import Task
from norton_det.data.shapes import KEYPOINT_NAMES

SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]
TWO_PARTS = [[1, 1, 6.5, 1, 6.5, 6, 1, 6], [10, 8, 18, 8, 14, 14.2]]
POSE = [value for number in range(17) for value in (number + 1, 2 * (number % 7), 2)]


def compressed() -> dict[str, Any]:
    mask = np.zeros((16, 20), dtype=np.uint8, order="F")
    mask[3:9, 4:19] = 1
    encoded = rle.encode(mask)
    return {"size": [16, 20], "counts": encoded["counts"].decode()}


def annotation(id: int, image: int, category: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    area = bbox[2] * bbox[3]
    return {
        "id": id,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": area,
        "iscrowd": 0,
    } | more


# Ids with gaps and out of order; one grey image, one without objects, one with a crowd only.
CONTENT: dict[str, Any] = {
    "images": [
        {"id": 70, "file_name": "colour.png", "width": 20, "height": 16},
        {"id": 8, "file_name": "sub/grey.jpg", "width": 16, "height": 24},
        {"id": 30, "file_name": "empty.png", "width": 20, "height": 16},
        {"id": 31, "file_name": "crowd.png", "width": 20, "height": 16},
    ],
    "annotations": [
        annotation(1, 70, 3, [2, 2, 10, 10], segmentation=SQUARE),
        annotation(2, 8, 9, [-4, 1, 10, 30], segmentation=[[0, 1, 6, 1, 6, 24, 0, 24]]),
        annotation(3, 70, 9, [1, 1, 17, 13.2], segmentation=TWO_PARTS),
        annotation(4, 70, 9, [4, 3, 15, 6], area=60, segmentation=compressed()),
        annotation(5, 70, 3, [5, 5, 0.5, 8], segmentation=SQUARE),  # too thin
        annotation(6, 70, 3, [19.5, 5, 9, 8], segmentation=SQUARE),  # too thin inside the image
        annotation(7, 31, 3, [0, 0, 20, 16], iscrowd=1, segmentation={"size": [16, 20], "counts": [0, 320]}),
        annotation(8, 70, 3, [0, 0, 4, 4], segmentation={"size": [16, 20], "counts": [10, 20, 290]}),
    ],
    "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
}


def write(folder: Path, content: dict[str, Any]) -> DatasetFiles:
    (folder / "sub").mkdir(exist_ok=True)
    ramp = np.arange(20 * 16 * 3, dtype=np.uint8).reshape(16, 20, 3)
    Image.fromarray(ramp).save(folder / "colour.png")
    for name in ("empty", "crowd"):
        Image.fromarray(ramp).convert("P").save(folder / f"{name}.png")
    Image.new("L", (16, 24), 77).save(folder / "sub" / "grey.jpg", quality=100)
    (folder / "annotations.json").write_text(json.dumps(content))
    return DatasetFiles("tiny", folder, folder / "annotations.json", keeps_ids=False)


def build(
    folder: Path, task: Task = "bbox", content: dict[str, Any] = CONTENT, training: bool = True, **more: Any
) -> CocoDataset:
    files = write(folder, content)
    return CocoDataset(files, read_categories(files, task), task, training, **more)


def test_training_reads_boxes_and_labels_and_says_what_it_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "norton_det"):
        dataset = build(tmp_path)
    assert dataset.ids.tolist() == [8, 70] and dataset.ids.dtype == np.int64
    assert dataset.sizes.tolist() == [[24, 16], [16, 20]]
    emptied = "images of which all objects are left out"
    assert dataset.counts == {"boxes below one pixel": 2, "crowds": 1, "images without objects": 1, emptied: 1}
    assert len(caplog.records) == 1 and "boxes below one pixel (2)" in caplog.text
    assert "data.keep_empty=true trains on images without objects" in caplog.text
    image, target = dataset[1]
    assert image.dtype == torch.uint8 and image.shape == (3, 16, 20)
    assert target["image_id"] == 70
    assert target["boxes"].tolist() == [
        [2, 2, 12, 12],
        [1, 1, 18, pytest.approx(14.2)],
        [4, 3, 19, 9],
        [0, 0, 4, 4],
    ]
    assert target["boxes"].canvas_size == (16, 20) and target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [1, 2, 2, 1] and target["labels"].dtype == torch.int64
    assert target["area"].tolist() == [100, pytest.approx(17 * 13.2), 60, 16]
    assert target["iscrowd"].tolist() == [0, 0, 0, 0]
    assert set(target) == {"image_id", "boxes", "labels", "area", "iscrowd"}
    assert dataset[0][1]["boxes"].tolist() == [[0, 1, 6, 24]]  # clipped to the image


def test_images_are_rgb_whatever_the_file_is(tmp_path: Path) -> None:
    dataset = build(tmp_path, training=False)
    grey, palette, _, colour = (dataset[index][0] for index in range(4))
    assert grey.shape == (3, 24, 16) and (grey.int() - 77).abs().max() <= 1
    ramp = np.arange(20 * 16 * 3, dtype=np.uint8).reshape(16, 20, 3)
    assert np.array_equal(colour.numpy(), ramp.transpose(2, 0, 1))
    expected = np.array(Image.open(tmp_path / "empty.png").convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(palette.numpy(), expected)
    Image.new("CMYK", (20, 16), (0, 255, 255, 0)).save(tmp_path / "colour.png", format="JPEG", quality=100)
    red = dataset[3][0].float().mean(dim=(1, 2))
    assert red[0] > 230 and red[1] < 25 and red[2] < 25


def test_masks_are_pycocotools(tmp_path: Path) -> None:
    _, target = build(tmp_path, "segm")[1]
    coco = COCO(tmp_path / "annotations.json")
    expected = [coco.annToMask(coco.anns[id]) for id in (1, 3, 4, 8)]
    assert target["masks"].dtype == torch.uint8
    assert np.array_equal(target["masks"].numpy(), np.stack(expected))
    assert target["masks"].flatten(1).sum(1).min() > 0


def test_objects_without_a_mask_are_left_out_of_segm_only(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"] += [
        annotation(20, 30, 3, [1, 1, 9, 9], segmentation=[]),
        annotation(21, 30, 3, [1, 1, 9, 9]),
        annotation(22, 30, 3, [1, 1, 9, 9], segmentation=[[1, 1, 5, 5]]),
    ]
    assert build(tmp_path, "segm", content).counts["objects without a mask"] == 3
    assert build(tmp_path, "bbox", content).ids.tolist() == [8, 30, 70]


def test_testing_keeps_every_image_and_reads_no_object(tmp_path: Path) -> None:
    dataset = build(tmp_path, training=False)
    assert dataset.ids.tolist() == [8, 30, 31, 70] and dataset.counts == {}
    assert [dataset[index][1] for index in range(4)] == [{"image_id": id} for id in (8, 30, 31, 70)]


def test_empty_images_are_kept_on_request_but_not_those_of_which_all_objects_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    dataset = build(tmp_path, "segm", keep_empty=True)
    assert dataset.ids.tolist() == [8, 30, 70]
    assert ": 3 images, 1 of them without objects; left out: " in caplog.text
    assert "images without objects" not in dataset.counts
    target = dataset[1][1]
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
    assert target["masks"].shape == (0, 16, 20)


def people() -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    content["categories"] = [
        {"id": 1, "name": "person", "keypoints": list(KEYPOINT_NAMES)},
        {"id": 2, "name": "car"},
    ]
    nine = [value if number < 9 * 3 else 0 for number, value in enumerate(POSE)]
    content["annotations"] = [
        annotation(1, 70, 1, [0, 0, 18, 14], keypoints=POSE, num_keypoints=17),
        annotation(2, 70, 1, [3, 3, 8, 8]),  # a person without keypoints
        annotation(3, 70, 2, [3, 3, 8, 8]),
        annotation(4, 8, 1, [0, 0, 12, 20], keypoints=nine),
        annotation(5, 30, 2, [3, 3, 8, 8]),
    ]
    return content


def test_keypoints_need_ten_visible_ones_and_people(tmp_path: Path) -> None:
    dataset = build(tmp_path, "keypoints", people())
    assert dataset.ids.tolist() == [70]
    assert dataset.counts == {
        "objects of other categories": 2,
        "images without objects": 2,
        "images with fewer than 10 visible keypoints": 1,
    }
    target = dataset[0][1]
    assert target["labels"].tolist() == [1, 1]
    assert target["keypoints"].shape == (2, 17, 2) and target["visibility"].dtype == torch.int64
    assert target["keypoints"][0].flatten().tolist() == [v for i, v in enumerate(POSE) if i % 3 < 2]
    assert target["visibility"].tolist() == [[2] * 17, [0] * 17]


@pytest.mark.parametrize(("visible", "ids"), [(9, [70]), (10, [8, 70])])
def test_ten_visible_keypoints_are_enough(tmp_path: Path, visible: int, ids: list[int]) -> None:
    content = people()
    content["annotations"][3]["keypoints"] = POSE[: visible * 3] + [0] * (17 - visible) * 3
    assert build(tmp_path, "keypoints", content).ids.tolist() == ids


def plates() -> dict[str, Any]:
    """Two categories with four keypoints; one image whose objects show a single one, one that shows none."""
    content = copy.deepcopy(CONTENT)
    corners = ["a", "b", "c", "d"]
    content["categories"] = [
        {"id": 9, "name": "plate", "keypoints": corners, "skeleton": []},
        {"id": 3, "name": "tray", "keypoints": corners},
    ]
    content["annotations"] = [
        annotation(1, 70, 3, [0, 0, 18, 14], keypoints=[0, 0, 0, 5, 6, 1, 0, 0, 0, 0, 0, 0]),
        annotation(2, 70, 9, [3, 3, 8, 8]),
        annotation(3, 8, 9, [0, 0, 12, 20], keypoints=[0] * 12),
    ]
    return content


def test_one_visible_keypoint_is_enough_where_they_are_not_coco_s(tmp_path: Path) -> None:
    dataset = build(tmp_path, "keypoints", plates())
    assert dataset.ids.tolist() == [70]
    assert dataset.counts == {"images without objects": 2, "images without visible keypoints": 1}
    target = dataset[0][1]
    assert target["labels"].tolist() == [1, 2]
    assert target["keypoints"].tolist() == [[[0, 0], [5, 6], [0, 0], [0, 0]], [[0, 0]] * 4]
    assert target["visibility"].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]


def test_seventeen_other_keypoints_are_not_coco_s(tmp_path: Path) -> None:
    content = people()
    content["categories"][0]["keypoints"] = [str(number) for number in range(17)]
    assert build(tmp_path, "keypoints", content).ids.tolist() == [8, 70]


def test_as_many_keypoints_are_expected_as_the_category_declares(tmp_path: Path) -> None:
    content = plates()
    content["annotations"][0]["keypoints"] = POSE
    with pytest.raises(ValueError, match=r"annotation 1: keypoints .* expected 4 times x, y, visibility"):
        build(tmp_path, "keypoints", content)


def changed(**first: Any) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    content["annotations"][0].update(first)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 5}, "annotation 1: it has the unknown image_id 5"),
        ({"category_id": 4}, "annotation 1: it has the unknown category_id 4"),
        ({"category_id": [3]}, r"annotation 1: it has the unknown category_id \[3\]"),
        ({"bbox": [1, 2, 3]}, "annotation 1: bbox"),
        ({"bbox": [1, 2, 3, float("nan")]}, "annotation 1: bbox"),
        ({"segmentation": {"size": [20, 16], "counts": "a"}}, r"annotation 1: RLE of size \[20, 16\]"),
    ],
)
def test_wrong_annotations_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"annotations\.json: {message}"):
        build(tmp_path, "segm", changed(**change))


def test_wrong_keypoints_are_named(tmp_path: Path) -> None:
    content = people()
    content["annotations"][0]["keypoints"] = POSE[:-1]
    with pytest.raises(ValueError, match=r"annotation 1: keypoints .* expected 17 times"):
        build(tmp_path, "keypoints", content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "../secret.png"}, r"'\.\./secret\.png' leads out"),
        ({"file_name": "/etc/passwd"}, "'/etc/passwd' leads out"),
        ({"id": 8}, "image 8: expected each id once"),
        ({"height": None}, "'height'"),
    ],
)
def test_wrong_images_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = copy.deepcopy(CONTENT)
    content["images"][0].update(change)
    with pytest.raises(ValueError, match=rf"annotations\.json: .*{message}"):
        build(tmp_path, "bbox", content, training=False)


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image to train on"):
        build(tmp_path, "bbox", {**CONTENT, "annotations": []})


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    dataset = build(tmp_path, training=False)
    path = tmp_path / "colour.png"
    damaged = path.read_bytes()[:-100]
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"colour\.png: not a readable image"):
        dataset[3]
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"colour\.png: not a readable image"):
        dataset[3]
    Image.new("RGB", (16, 20)).save(path)
    with pytest.raises(ValueError, match=r"colour\.png: 16 x 20 pixels, but the annotations say 20 x 16"):
        dataset[3]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"colour\.png"):
        dataset[3]


def test_augmentation_follows_from_seed_epoch_and_image(tmp_path: Path) -> None:
    def draw(image: torch.Tensor, target: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        return image, {**target, "draw": torch.rand(()).item()}

    def drawn(index: int | tuple[int, int], seed: int = 0) -> float:
        return float(build(tmp_path, transforms=draw, seed=seed)[index][1]["draw"])

    state = torch.get_rng_state()
    assert drawn((2, 1)) == drawn((2, 1)) and drawn(1) == drawn((0, 1))
    assert len({drawn((0, 0)), drawn((1, 0)), drawn((0, 1)), drawn((0, 0), seed=1)}) == 4
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is left alone


def test_iteration_ends(tmp_path: Path) -> None:
    assert [target["image_id"] for _, target in build(tmp_path)] == [8, 70]  # type: ignore[attr-defined]


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_masks_are_pycocotools(real_data: Path, split: str) -> None:
    coco_folder = real_data / "coco"
    path = coco_folder / "annotations" / f"instances_{split}.json"
    files = DatasetFiles("coco", coco_folder / split, path, keeps_ids=True)
    dataset = CocoDataset(files, read_categories(files, "segm"), "segm", training=True)
    coco = COCO(path)
    for index in range(0, len(dataset), 23):
        image, target = dataset[index]
        annotations = coco.loadAnns(coco.getAnnIds([target["image_id"]], iscrowd=False))
        assert image.shape[1:] == target["masks"].shape[1:]
        assert target["labels"].tolist() == [annotation["category_id"] for annotation in annotations]
        expected = [coco.annToMask(annotation) for annotation in annotations]
        assert np.array_equal(target["masks"].numpy(), np.stack(expected))


def test_real_people_are_those_that_torchvision_would_take(real_data: Path) -> None:
    coco_folder = real_data / "coco"
    path = coco_folder / "annotations" / "person_keypoints_train2017.json"
    files = DatasetFiles("coco", coco_folder / "train2017", path, keeps_ids=True)
    dataset = CocoDataset(files, read_categories(files, "keypoints"), "keypoints", training=True)
    coco = COCO(path)
    visible = {id: sum(a["num_keypoints"] for a in coco.imgToAnns[id]) for id in coco.getImgIds()}
    assert dataset.ids.tolist() == sorted(id for id, count in visible.items() if count >= 10)
