"""The agreement command as a user types it."""

import json
from pathlib import Path

import pytest
import torch
from detectors import frames, tiny_detector

import norton_det
from norton_det.cli.main import main
from norton_det.data.images import write_png
from norton_det.evaluation.consensus import VIEWS
from norton_det.keypoints import Keypoints

COUNT = 4


@pytest.fixture(autouse=True)
def images(in_an_empty_folder):
    for number, image in enumerate(frames(COUNT)):
        write_png(Path(f"photos/{number}.png"), (255 * image).to(torch.uint8))


def saved(name, kind="mask_rcnn", seed=0, **told):
    detector = tiny_detector(kind, "resnet18", seed=seed)
    for attribute, value in told.items():
        setattr(detector, attribute, value)
    norton_det.save(detector, name)
    return name


def agreement(*words):
    return main(["agreement", *words, "--images", "photos"])


def test_a_detector_agrees_with_itself_on_every_image(capsys, monkeypatch):
    monkeypatch.setattr("norton_det.api.VIEWS", VIEWS[:1])  # what random weights find is found in no other view
    saved("one.pth")
    assert agreement("one.pth", "one.pth", "--score", "0.3", "--image-count", "3", "--json", "found.json") == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert rows["boxes"][:6] == ["100.0", "100.0", "to", "100.0", "100.0", "100.0"]
    assert rows["masks"][0] == "100.0"
    found = json.loads(Path("found.json").read_text())
    assert (found["reference"], found["image_count"], found["score"]) == ("one.pth", 3, 0.3)
    assert found["findings"] == sum(image["findings"] for image in found["images"]) > 3
    assert sorted(image["file"] for image in found["images"]) == ["photos/0.png", "photos/1.png", "photos/2.png"]
    assert all(image["bbox"] == image["segm"] == 100 for image in found["images"])
    assert found["tasks"]["segm"]["metrics"]["AP"] == pytest.approx(100)


def test_the_images_that_agree_least_come_first(capsys):
    saved("one.pth", "faster_rcnn")
    saved("other.pth", "faster_rcnn", seed=1)
    assert agreement("one.pth", "other.pth", "--score", "0.3", "--json", "found.json") == 0
    found = json.loads(Path("found.json").read_text())
    f1 = [image["bbox"] for image in found["images"]]
    assert len(f1) == COUNT and f1 == sorted(f1) and f1[0] < 100
    metrics = found["tasks"]["bbox"]["metrics"]
    low, high = found["tasks"]["bbox"]["interval"]
    assert low <= metrics["AP"] <= high and metrics["AP"] < 90
    images = norton_det.open_images("photos", COUNT)
    detectors = [norton_det.load_detector(name) for name in ("one.pth", "other.pth")]
    assert norton_det.agreement(*detectors, images, 0.3).tasks["bbox"].metrics["AP"] == metrics["AP"]


@pytest.mark.parametrize(
    ("changes", "words", "told"),
    [
        ({}, ["--score", "1"], "the reference finds nothing of a score of at least 1 on 4 images: name other images"),
        ({}, ["--image-count", "0"], "--image-count: at least 1, got 0"),
        ({"categories": ["__background__", "ant", "bee"]}, [], "the reference lacks ant, bee; the detector lacks"),
        ({"keypoints": Keypoints.named([f"p{i}" for i in range(17)])}, ["--score", "0"], "keypoints are p0, p1"),
    ],
)
def test_what_cannot_be_compared_is_one_line(changes, words, told, capsys):
    saved("one.pth", "keypoint_rcnn")
    saved("other.pth", "keypoint_rcnn", **changes)
    assert agreement("one.pth", "other.pth", *words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "norton-det agreement:" in line]
    assert len(errors) == 1 and told in errors[0]


def test_a_detector_stays_in_the_mode_that_it_was_in():
    training, evaluated = (tiny_detector("fcos", "resnet18") for _ in range(2))
    training.train()
    found = norton_det.agreement(training, evaluated, frames(1), score=0.0)
    assert found.tasks["bbox"].metrics["AP"] == pytest.approx(100)
    assert (training.training, evaluated.training) == (True, False)
