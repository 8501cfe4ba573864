"""The report's validation images: which they are, how large, and whose predictions stand on them."""

import base64
import io
import json

import pytest
from PIL import Image

from norton_det.data.catalog import DatasetFiles, read_categories
from norton_det.report.pictures import draw_pairs


@pytest.fixture
def files(tmp_path):
    """Six grey images, 600 x 300, with ids 11 to 16 and no object."""
    images = []
    for id in range(11, 17):
        Image.new("RGB", (600, 300), (128, 128, 128)).save(tmp_path / f"{id}.png")
        images.append({"id": id, "file_name": f"{id}.png", "width": 600, "height": 300})
    content = {"images": images, "annotations": [], "categories": [{"id": 5, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return DatasetFiles("a", tmp_path, tmp_path / "a.json", keeps_ids=False)


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))


def test_images_are_spread_over_the_dataset_and_have_their_own_predictions(files):
    found = {"category_id": 5, "bbox": [100, 50, 300, 200], "score": 0.9}
    results = [{**found, "image_id": 15}, {**found, "image_id": 13, "score": 0.4}]
    pairs = draw_pairs(files, read_categories(files, "bbox"), "bbox", results, count=3)
    assert [pair.image_id for pair in pairs] == [11, 13, 15]
    assert [pair.truth != pair.predictions for pair in pairs] == [False, False, True]
    assert {opened(uri).size for pair in pairs for uri in (pair.truth, pair.predictions)} == {(480, 240)}


def test_of_fewer_images_each_is_shown(files):
    pairs = draw_pairs(files, read_categories(files, "bbox"), "bbox", [], count=12)
    assert [pair.image_id for pair in pairs] == list(range(11, 17))
