"""The image demo as its user types it: files, patterns and folders in, pictures and JSON out."""

import json

import numpy as np
import pytest
import torch
from detectors import ALL_KINDS, tiny_detector
from PIL import Image

import norton_det
from norton_det.cli.main import main
from norton_det.data.images import picture_names, read_image


def saved(folder, kind, body="resnet18", plan=None):
    """A file of a tiny detector with random weights, whose scores of two classes are alike."""
    detector = tiny_detector(kind, body, plan, channels=64)
    detector.categories, detector.category_ids = ["__background__", "cat", "dog"], [0, 17, 18]
    (detector.roi_heads if hasattr(detector, "roi_heads") else detector).detections_per_img = 10
    if not hasattr(detector, "roi_heads"):  # which learns that nothing is of class 0
        detector.head.classification_head.cls_logits.bias.data.view(-1, 3)[:, 0] = -20
    path = folder / f"{kind}.pth"
    norton_det.save(detector, path)
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("weights"), "mask_rcnn")


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


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_detector_of_any_kind_draws(kind, photos):
    weights = saved(photos, kind, plan={"notation": "[0.25]*12", "parts": {"classification_head": 1}})
    words = ["--confidence", "0", "--input", "photos/a.png", "--output", "out", "--json", "found.json"]
    assert main(["image", "--weights", weights, *words]) == 0
    [row] = json.loads((photos / "found.json").read_text())
    assert list(row) == ["file", "scale", "height", "width", "detections"]
    beside = {"mask_rcnn": {"segmentation"}, "keypoint_rcnn": {"keypoints"}}.get(kind.removesuffix("_v2"), set())
    for detection in row["detections"]:
        assert set(detection) == {"bbox", "category", "category_id", "score"} | beside
        assert {17: "cat", 18: "dog"}[detection["category_id"]] == detection["category"]
    assert 0 < len(row["detections"]) <= 10
    assert not torch.equal(read_image(photos / "out/a.png"), read_image(photos / "photos/a.png"))


@pytest.mark.parametrize("kind", ["fcos", "mask_rcnn"])
def test_an_exported_detector_draws(kind, photos):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    weights = saved(photos, kind)
    assert main(["export-model", "--weights", weights, "--images", "photos", "--output", "exported.onnx"]) == 0
    words = ["--confidence", "0", "--input", "photos/a.png", "--output", "out", "--json", "found.json"]
    assert main(["image", "--weights", "exported.onnx", *words]) == 0
    [row] = json.loads((photos / "found.json").read_text())
    assert 0 < len(row["detections"]) <= 10


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
