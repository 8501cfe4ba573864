import json
from pathlib import Path
from typing import Any

import pytest
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from norton_det.data import catalog, shapes
from norton_det.data.catalog import (
    DatasetFiles,
    datasets_root,
    find_dataset,
    read_annotations,
    read_categories,
    read_keypoints,
)
from norton_det.keypoints import COCO_KEYPOINTS, Keypoints


def write_annotations(path: Path, categories: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NORTON_DATASETS", str(tmp_path / "not" / "there"))
    return tmp_path / "not" / "there"


def test_root_is_datasets_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NORTON_DATASETS", raising=False)
    assert datasets_root() == Path("datasets")


@pytest.mark.parametrize(
    ("task", "prefix"), [("bbox", "instances"), ("segm", "instances"), ("keypoints", "person_keypoints")]
)
def test_the_task_picks_cocos_annotations(root: Path, task: catalog.Task, prefix: str) -> None:
    images = root / "coco" / "val2017"
    annotations = root / "coco" / "annotations" / f"{prefix}_val2017.json"
    images.mkdir(parents=True)
    write_annotations(annotations, [])
    assert find_dataset("coco_2017_val", task) == DatasetFiles("coco_2017_val", images, annotations, True)


def test_missing_coco_says_what_where_and_how_in_one_line(root: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        find_dataset("coco_2017_train", "bbox")
    message = str(error.value)
    assert "\n" not in message
    for part in (str(root / "coco" / "train2017"), "cocodataset.org", "train2017.zip", "datasets/README.md"):
        assert part in message
    assert "quickstart.yaml" in message and "data.train=shapes_train" in message


def test_missing_shapes_are_drawn_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw(folder: Path) -> None:
        drawn.append(folder)
        (folder / "train").mkdir(parents=True)
        write_annotations(folder / "annotations" / "instances_train.json", [])

    monkeypatch.setattr(shapes, "write_shapes", draw)
    for _ in range(2):
        files = find_dataset("shapes_train", "bbox")
    assert files.images == root / "shapes" / "train" and not files.keeps_ids
    assert drawn == [root / "shapes"]


def test_shapes_that_lack_a_part_are_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "write_shapes", lambda folder: None)
    with pytest.raises(FileNotFoundError, match=r"shapes.* lacks .*val"):
        find_dataset("shapes_val", "segm")


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'shape_train'.*'shapes_train'"):
        find_dataset("shape_train", "bbox")


def test_own_dataset(tmp_path: Path) -> None:
    own = {"images": str(tmp_path), "annotations": str(tmp_path / "cats.json")}
    with pytest.raises(FileNotFoundError, match=r"cats\.json does not exist"):
        find_dataset(own, "bbox")
    write_annotations(tmp_path / "cats.json", [])
    assert find_dataset(own, "bbox") == DatasetFiles("cats", tmp_path, tmp_path / "cats.json", False)
    with pytest.raises(FileNotFoundError, match=r"image folder .*nowhere does not exist"):
        find_dataset({**own, "images": str(tmp_path / "nowhere")}, "bbox")
    with pytest.raises(ValueError, match=r"'images'.*'annotations'"):
        find_dataset({"image": "a", "annotations": "b"}, "bbox")


def test_coco_has_torchvisions_labels(real_data: Path) -> None:
    annotations = real_data / "coco" / "annotations"
    files = DatasetFiles("coco", real_data, annotations / "instances_val2017.json", keeps_ids=True)
    categories = read_categories(files, "bbox")
    assert list(categories.names) == FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert categories.ids == tuple(range(91))
    assert len(categories.labels) == 80 and categories.labels[90] == 90 and 12 not in categories.labels
    people = DatasetFiles("coco", real_data, annotations / "person_keypoints_val2017.json", keeps_ids=True)
    keypoints = read_categories(people, "keypoints")
    assert (keypoints.names, keypoints.ids) == (("__background__", "person"), (0, 1))
    assert keypoints.keypoints == COCO_KEYPOINTS and categories.keypoints is None


def test_where_ids_are_kept_those_between_are_unused(tmp_path: Path) -> None:
    path = write_annotations(tmp_path / "a.json", [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}])
    categories = read_categories(DatasetFiles("coco", tmp_path, path, keeps_ids=True), "bbox")
    assert categories.names == ("__background__", "person", "N/A", "car", *["N/A"] * 87)
    assert categories.ids == tuple(range(91))
    assert categories.labels == {1: 1, 3: 3}


def test_other_datasets_have_contiguous_labels_by_id(tmp_path: Path) -> None:
    found = [{"id": 7, "name": "dog"}, {"id": 0, "name": "cat"}, {"id": 12, "name": "N/A?"}]
    files = DatasetFiles("own", tmp_path, write_annotations(tmp_path / "a.json", found), keeps_ids=False)
    categories = read_categories(files, "bbox")
    assert categories.names == ("__background__", "cat", "dog", "N/A?")
    assert categories.ids == (0, 0, 7, 12)
    assert categories.labels == {0: 1, 7: 2, 12: 3}


def test_keypoints_count_only_categories_that_have_them(tmp_path: Path) -> None:
    names = [str(number) for number in range(17)]
    found = [{"id": 1, "name": "car"}, {"id": 4, "name": "person", "keypoints": names}]
    path = write_annotations(tmp_path / "a.json", found)
    categories = read_categories(DatasetFiles("own", tmp_path, path, keeps_ids=False), "keypoints")
    assert (categories.names, categories.ids) == (("__background__", "person"), (0, 4))


def test_keypoints_are_those_that_the_categories_declare(tmp_path: Path) -> None:
    hand = {"keypoints": ["tip_l", "root", "tip_r"], "skeleton": [[1, 2], [2, 3]]}
    found = [
        {"id": 2, "name": "glove", **hand, "skeleton": []},
        {"id": 1, "name": "car"},
        {"id": 9, "name": "hand", **hand},
    ]
    path = write_annotations(tmp_path / "a.json", found)
    files = DatasetFiles("own", tmp_path, path, keeps_ids=False)
    expected = Keypoints(("tip_l", "root", "tip_r"), (2, 1, 0), ())  # the first category's
    assert read_categories(files, "keypoints").keypoints == read_keypoints(path) == expected
    assert read_categories(files, "keypoints").names == ("__background__", "glove", "hand")
    assert read_categories(files, "bbox").keypoints is None


def test_where_no_category_declares_keypoints_they_are_coco_s(tmp_path: Path) -> None:
    assert read_keypoints(write_annotations(tmp_path / "a.json", [{"id": 1, "name": "person"}])) == COCO_KEYPOINTS


@pytest.mark.parametrize(
    "info", [{}, {"about": 'the "categories": []'}, {"categories": [{"id": 3, "name": "wrong"}]}]
)
def test_categories_are_those_of_the_whole_whatever_else_has_the_word(tmp_path: Path, info: dict[str, Any]) -> None:
    content = {"info": info, "categories": [{"id": 1, "name": "größer"}], "images": [], "annotations": []}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    assert read_categories(DatasetFiles("own", tmp_path, path, False), "bbox").names == ("__background__", "größer")


@pytest.mark.parametrize(
    ("categories", "task", "message"),
    [
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "bbox", "id 1"),
        ([{"id": "one", "name": "a"}], "bbox", "integer id"),
        ([], "bbox", "no category"),
        ([{"id": 1, "name": "hand", "keypoints": ["a"] * 21}], "keypoints", "'hand': two keypoints are called 'a'"),
        ([{"id": 1, "name": "hand", "keypoints": True}], "keypoints", "'hand': no list of keypoints"),
        (
            [{"id": 1, "name": "cat", "keypoints": ["ear"]}, {"id": 2, "name": "hen", "keypoints": ["beak"]}],
            "keypoints",
            "the categories 'cat' and 'hen' have different keypoints, expected the same: ear",
        ),
        ([{"id": 1, "name": "a"}], "keypoints", "no category with keypoints"),
    ],
)
def test_wrong_categories_name_the_file(
    tmp_path: Path, categories: list[dict[str, Any]], task: catalog.Task, message: str
) -> None:
    path = write_annotations(tmp_path / "wrong.json", categories)
    with pytest.raises(ValueError, match=rf"wrong\.json: .*{message}"):
        read_categories(DatasetFiles("own", tmp_path, path, keeps_ids=False), task)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": [], "annotations": []}', '{"images": [1]}', "\xff"])
def test_broken_annotations_name_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"broken\.json: not "):
        read_annotations(path)
