"""The image demo as its user types it: files, patterns and folders in, pictures and JSON out."""

import json

import numpy as np
import pytest
import torch
from norton_det.models.detectors import DetectorSettings, DetectorSpec, build_from_spec
from norton_det.models.resnet import ResNetSpec
from PIL import Image

from norton_det.cli.image import picture_names
from norton_det.cli.main import main
from norton_det.data.images import read_image
from norton_det.engine.checkpoint import save_weights

SETTINGS = DetectorSettings(min_size=(64,), max_size=96, test_proposals=20, score_threshold=0.0, detections=5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny Mask R-CNN with random weights, whose scores of two classes and the background are about a third."""
    torch.manual_seed(0)
    spec = DetectorSpec(
        "mask_rcnn",
        3,
        ResNetSpec.dense(0.125),
        fpn_channels=16,
        box_channels=32,
        mask_channels=8,
        settings=SETTINGS,
    )
    detector = build_from_spec(spec)
    detector.categories, detector.category_ids = ["__background__", "cat", "dog"], [0, 17, 18]
    path = tmp_path_factory.mktemp("weights") / "detector.pth"
    save_weights(path, detector)
    return str(path)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, size in (("a", (90, 60)), ("b", (60, 90)), ("dot", (1, 1))):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)).save(
            tmp_path / f"photos/{name}.png"
        )
    return tmp_path


def draw(weights, *words):
    return main(["image", "--weights", weights, "--confidence", "0.1", *words])


@pytest.mark.parametrize("given", ["photos", "photos/*.png"])
def test_every_image_gets_a_picture_of_its_size_and_its_detections(given, weights, photos):
    assert draw(weights, "--input", given, "--output", "out", "--json", "found.json") == 0
    found = json.loads((photos / "found.json").read_text())
    assert [row["file"] for row in found] == ["photos/a.png", "photos/b.png", "photos/dot.png"]
    for row, name in zip(found, "ab", strict=False):
        picture = read_image(photos / f"out/{name}.png")
        assert [*picture.shape[1:]] == [row["height"], row["width"]]
        assert row["detections"]
        assert not torch.equal(picture, read_image(photos / f"photos/{name}.png"))
        for detection in row["detections"]:
            assert {17: "cat", 18: "dog"}[detection["category_id"]] == detection["category"]
            assert detection["score"] >= 0.1
            assert detection["segmentation"]["size"] == [row["height"], row["width"]]


def test_a_damaged_image_is_named_and_the_others_go_on(weights, photos, capsys, caplog):
    (photos / "photos/b.png").write_bytes(b"")
    Image.new("L", (1, 600)).save(photos / "photos/line.png")
    assert draw(weights, "--input", "photos", "gone.jpg", "--output", "out", "--json", "found.json") == 2
    assert all(name in caplog.text for name in ("photos/b.png", "photos/line.png", "no image file 'gone.jpg'"))
    assert "3 of 5 images" in capsys.readouterr().err
    assert len(json.loads((photos / "found.json").read_text())) == 2
    assert sorted(path.name for path in (photos / "out").iterdir()) == ["a.png", "dot.png"]


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path):
    paths = [tmp_path / "x/1.jpg", tmp_path / "y/1.jpg", tmp_path / "2.jpg"]
    names = picture_names(paths)
    assert len(set(names.values())) == 3
    assert names[paths[2]] == "2.png"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--input", "photos/*.gif", "--output", "out"], "no file matches"),
        (["--input", "photos"], "--output"),
        (["--input", "photos", "--output", "out", "--device", "cuda:9"], "'cuda:9' is not there"),
    ],
)
def test_a_mistake_is_one_line(words, expected, weights, photos, capsys, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert draw(weights, *words) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert expected in line


@pytest.mark.parametrize("confidence", ["50", "-0.1", "nan", "half"])
def test_a_confidence_that_is_no_share_is_told(confidence, weights, photos, capsys):
    with pytest.raises(SystemExit, match="2"):
        draw(weights, "--input", "photos", "--output", "out", f"--confidence={confidence}")
    assert f"--confidence: a number from 0 to 1, got '{confidence}'" in capsys.readouterr().err


def test_without_a_trained_detector_the_way_is_told(photos, capsys):
    assert main(["image", "--input", "photos", "--output", "out"]) == 2
    assert "make quickstart" in capsys.readouterr().err
