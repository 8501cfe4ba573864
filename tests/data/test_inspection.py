"""Image files are looked at before a run begins, and photos are made as small as they are trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from norton_det.data.catalog import DatasetFiles, read_categories
from norton_det.data.coco import CocoDataset
from norton_det.data.inspection import inspect_images, require_images
from norton_det.data.reading import Task

POLYGON = [40, 20, 120, 20, 120, 100, 40, 100]


def dataset(folder: Path, count: int = 4, task: Task = "segm", training: bool = True) -> CocoDataset:
    """Grey photos of 200 x 160 pixels with a white square, and its mask and box."""
    pixels = np.full((160, 200, 3), 60, np.uint8)
    pixels[20:100, 40:120] = 255
    names = [f"{number}.jpg" for number in range(count)]
    for name in names:
        if not (folder / name).exists():
            Image.fromarray(pixels).save(folder / name, quality=95)
    images = [{"id": i, "file_name": name, "width": 200, "height": 160} for i, name in enumerate(names)]
    box = {"category_id": 1, "bbox": [40, 20, 80, 80], "segmentation": [POLYGON], "keypoints": [60, 30, 2]}
    annotations = [{"id": i, "image_id": i, **box} for i in range(count)]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "square", "keypoints": ["middle"]}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    files = DatasetFiles("photos", folder, folder / "a.json", keeps_ids=False)
    return CocoDataset(files, read_categories(files, task), task, training)


def test_missing_damaged_and_turned_images_are_found_without_reading_their_pixels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = dataset(tmp_path)
    require_images(photos, "photos")
    assert "turned" not in caplog.text
    picture = Image.open(tmp_path / "0.jpg").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "1.jpg", exif=exif)  # upright it is as told
    with caplog.at_level("INFO"):
        require_images(photos, "photos")
    assert "photos: images that are turned upright, as their EXIF orientation says: 1" in caplog.text
    picture.save(tmp_path / "2.jpg", exif=exif)  # the annotations tell the size of what lies there
    (tmp_path / "3.jpg").write_bytes(b"no image")
    (tmp_path / "0.jpg").unlink()
    found = inspect_images(photos)
    assert [len(lines) for lines in (found.missing, found.misfits, found.damaged)] == [1, 1, 1] and found.turned == 1
    assert f"{tmp_path / '2.jpg'}: the annotations say 200 x 160" in found.misfits[0]
    assert "EXIF orientation 6 turns it to 160 x 200" in found.misfits[0]
    with pytest.raises(ValueError, match=r"no image file '.*0\.jpg' \(and 2 more"):
        require_images(photos, "photos")
    assert len(found.problems(tolerated=1)) == 2


def test_damage_behind_a_header_is_found_where_the_pixels_are_read(tmp_path: Path) -> None:
    photos = dataset(tmp_path, 1)
    (tmp_path / "0.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:-100])
    assert not inspect_images(photos).damaged and len(inspect_images(photos, pixels=True).damaged) == 1


@pytest.mark.parametrize("name", ["A.JPG", "images/a.jpg", "cafe\u0301.jpg"])
def test_a_missing_image_is_told_with_the_file_that_it_may_be(name: str, tmp_path: Path) -> None:
    present = tmp_path / ("caf\u00e9.jpg" if "caf" in name else "a.jpg")
    Image.new("RGB", (20, 16)).save(present)
    content = {
        "images": [{"id": 1, "file_name": name, "width": 20, "height": 16}],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    files = DatasetFiles("photos", tmp_path, tmp_path / "a.json", keeps_ids=False)
    photos = CocoDataset(files, read_categories(files, "bbox"), "bbox", training=False)
    with pytest.raises(ValueError, match=rf"no image file '{tmp_path / name}'; there is '{present}'"):
        require_images(photos, "photos")


@pytest.mark.parametrize(("shorter", "longer", "size"), [(80, 999, (80, 100)), (999, 50, (40, 50)), (160, 200, None)])
def test_a_photo_is_made_as_small_as_is_trained_on_with_all_that_is_in_it(
    shorter: int, longer: int, size: tuple[int, int] | None, tmp_path: Path
) -> None:
    photos = dataset(tmp_path, 1)
    photos.shrink(shorter, longer)
    image, target = photos[0]
    height, width = size or (160, 200)
    scale = width / 200
    assert image.shape == (3, height, width) and image.dtype == torch.uint8
    assert target["boxes"].canvas_size == (height, width)
    assert target["boxes"].tolist() == [pytest.approx([40 * scale, 20 * scale, 120 * scale, 100 * scale])]
    assert target["area"].tolist() == [pytest.approx(80 * 80 * scale**2)]
    mask = target["masks"][0].bool()
    assert mask.shape == (height, width)
    assert (mask & (image[0] > 150)).sum() > 0.95 * mask.sum()
    assert abs(int(mask.sum()) - 80 * 80 * scale**2) < 4 * 80 * scale


def test_keypoints_shrink_as_torchvision_shrinks_them(tmp_path: Path) -> None:
    photos = dataset(tmp_path, 1, "keypoints")
    photos.shrink(80, 100)
    assert photos[0][1]["keypoints"].tolist() == [[[30, 15]]]
