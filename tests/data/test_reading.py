"""JSONs as tools write them: what can be meant one way only is taken, everything else is a line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from norton_det.data.reading import _run_lengths, read_content, rle_problem

SQUARE = [2, 3, 12, 3, 12, 9, 2, 9]
OBJECT = {"id": 5, "image_id": 1, "category_id": 2, "bbox": [2, 3, 10, 6], "area": 60, "iscrowd": 0}
RLE = {"size": [16, 20], "counts": [10, 20, 290]}
NAN = float("nan")


def write(folder: Path, *objects: dict[str, Any], image: dict[str, Any] | None = None) -> Path:
    path = folder / "told.json"
    images = [{"id": 1, "file_name": "a.png", "width": 20, "height": 16} | (image or {})]
    content = {"images": images, "annotations": objects, "categories": [{"id": 2, "name": "a"}]}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"image_id": 1.0, "category_id": "2"}, {"image_id": 1, "category_id": 2}),
        ({"iscrowd": NAN}, {"iscrowd": 0}),
        ({"iscrowd": None}, {"iscrowd": 0}),
        ({"iscrowd": True}, {"iscrowd": 1}),
        ({"iscrowd": 1.0}, {"iscrowd": 1}),
        ({"area": NAN}, {"area": 60}),
        ({"area": None, "bbox": [1, 1, 4, 5]}, {"area": 20}),
        ({"area": -58.5}, {"area": 60}),
        ({"area": 0}, {"area": 60}),
        ({"bbox": [], "segmentation": [SQUARE]}, {"bbox": [2, 3, 10, 6]}),
        ({"bbox": NAN, "segmentation": [SQUARE, [1, 2, 3, 4]]}, {"bbox": [2, 3, 10, 6]}),
        ({"segmentation": SQUARE}, {"segmentation": [SQUARE]}),
        ({"segmentation": [[1, 2, 3, 4], SQUARE, [NAN] * 6, []]}, {"segmentation": [SQUARE]}),
        ({"segmentation": [[1, 2, 3, 4]]}, {"segmentation": None}),
        ({"segmentation": NAN}, {"segmentation": None}),
        ({"segmentation": RLE}, {"segmentation": RLE}),
        ({"segmentation": [RLE]}, {"segmentation": RLE}),
    ],
)
def test_what_can_be_meant_one_way_only_is_taken(said: dict[str, Any], meant: dict[str, Any], tmp_path: Path) -> None:
    content = read_content(write(tmp_path, OBJECT | said), "segm")
    assert not content.problems
    [annotation] = content.annotations
    assert {key: annotation[key] for key in meant} == meant
    assert all(type(annotation[key]) is int for key in ("image_id", "category_id", "iscrowd"))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"image_id": 9}, "unknown image_id 9"),
        ({"image_id": 1.5}, r"unknown image_id 1\.5"),
        ({"category_id": None}, "unknown category_id None"),
        ({"category_id": True}, "unknown category_id True"),
        ({"bbox": "2 3 10 6"}, "bbox '2 3 10 6', expected four numbers"),
        ({"bbox": [2, 3, NAN, 6], "segmentation": [SQUARE]}, "bbox .*, expected four numbers"),
        ({"bbox": None}, "bbox None, expected four numbers"),
        ({"area": "large"}, "area 'large', expected a number"),
        ({"iscrowd": "no"}, "iscrowd 'no', expected 0 or 1"),
        ({"iscrowd": 2}, "iscrowd 2, expected 0 or 1"),
        (
            {"segmentation": RLE | {"size": [20, 16]}},
            r"RLE of size \[20, 16\], expected \[16, 20\]",
        ),
        ({"segmentation": RLE | {"counts": [1, 2]}}, "RLE of 3 pixels, expected 320"),
        ({"segmentation": RLE | {"counts": "PP"}}, "RLE whose 'counts' are no run lengths"),
        ({"segmentation": RLE | {"counts": "14"}}, "RLE of 5 pixels, expected 320"),
        ({"segmentation": {"size": [16, 20]}}, "RLE whose 'counts' are no run lengths"),
    ],
)
def test_what_cannot_be_taken_is_a_line_with_file_and_annotation(
    said: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = write(tmp_path, OBJECT | said, OBJECT)
    content = read_content(path, "segm")
    assert [annotation["bbox"] for annotation in content.annotations] == [OBJECT["bbox"]]
    with pytest.raises(ValueError, match=rf"^{path}: annotation 5: .*{told}"):
        content.sound()


@pytest.mark.parametrize("seed", range(20))
def test_text_of_run_lengths_is_read_as_pycocotools_writes_it(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(1, 300, 2).tolist())
    mask = np.asfortranarray(generator.random(shape) < generator.random(), np.uint8)
    mask[: shape[0] // 2] = seed % 2  # long runs too
    encoded = rle.encode(mask)["counts"].decode()
    assert rle_problem({"size": list(shape), "counts": encoded}, shape) is None
    assert "pixels, expected" in str(
        rle_problem({"size": [shape[0], shape[1] + 1], "counts": encoded}, (shape[0], shape[1] + 1))
    )
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel(), [2]]))))
    assert _run_lengths(encoded) == [0] * int(mask[0, 0]) + runs.tolist()


def test_several_problems_are_counted(tmp_path: Path) -> None:
    content = read_content(write(tmp_path, *[OBJECT | {"bbox": [1]}] * 3), "bbox")
    assert len(content.problems) == 3
    with pytest.raises(ValueError, match=r"and 2 more like it: norton-det check lists them"):
        content.sound()


def test_keypoints_without_a_place_are_not_labelled(tmp_path: Path) -> None:
    said = [3, 4, 2, None, None, 0, NAN, 5, 1]
    path = write(tmp_path, OBJECT | {"keypoints": said}, OBJECT | {"keypoints": NAN}, OBJECT | {"keypoints": [1, 2]})
    content = read_content(path, "keypoints", 3)
    assert [a["keypoints"] for a in content.annotations] == [[3, 4, 2] + [0] * 6, [0] * 9]
    assert [a["num_keypoints"] for a in content.annotations] == [1, 0]
    assert content.problems == [f"{path}: annotation 5: keypoints [1, 2], expected 3 times x, y, visibility"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"width": 20.0, "height": "16"}, {"width": 20, "height": 16}),
        ({"file_name": "photos\\2024\\a.png"}, {"file_name": "photos/2024/a.png"}),
        ({"file_name": "..\\a.png"}, r"'\.\.\\\\a\.png' leads out of the image folder"),
        ({"file_name": "C:\\photos\\a.png"}, "leads out of the image folder"),
        (
            {"file_name": "Screenshot 9.41.00\u202fAM\u3000猫.png"},
            {"file_name": "Screenshot 9.41.00\u202fAM\u3000猫.png"},
        ),
        ({"file_name": "a\n.png"}, "is not the name of an image"),
        ({"width": None}, "image 1: 'width' is None, expected an integer"),
        ({"height": 0}, "20 x 0 pixels"),
        ({"file_name": 7}, "'file_name' is 7, expected text"),
    ],
)
def test_images_are_read_likewise(said: dict[str, Any], meant: dict[str, Any] | str, tmp_path: Path) -> None:
    content = read_content(write(tmp_path, image=said), "bbox")
    if isinstance(meant, str):
        with pytest.raises(ValueError, match=meant):
            content.sound()
    else:
        assert {key: content.images[1][key] for key in meant} == meant
