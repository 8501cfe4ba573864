"""Whole detectors as they are exported, in torch, against torchvision's."""

import pytest
import torch
from clear import assert_same_detections, clear_detector, pictures, require_little
from detectors import ALL_KINDS

from norton_det.deploy.export import OUTPUTS, ExportedGraph, describe_export, framed, resize
from norton_det.models.settings import write_settings


def run(detector, images, is_fixed):
    """Detections in the pixels of the resized images, as torchvision has them; the number of rows that come out."""
    inputs = framed([resize(detector, image) for image in images])
    with torch.inference_mode():
        counts, *outputs = ExportedGraph(detector, is_fixed)(*inputs)
    names = [OUTPUTS[name] for name in describe_export(detector).outputs]
    most = len(outputs[0]) // len(images)
    starts = [most * number for number in range(len(images))] if is_fixed else (counts.cumsum(0) - counts).tolist()
    found = [
        {name: rows[start : start + count] for name, rows in zip(names, outputs, strict=True)}
        for start, count in zip(starts, counts.tolist(), strict=True)
    ]
    return found, len(outputs[0])


def as_they_are(detector, images):
    """What torchvision finds in images that have their final size, masks not pasted; no keypoints."""
    transform = detector.transform
    transform.resize = lambda image, target=None: (image, target)
    transform.postprocess = lambda found, *_: found
    with torch.inference_mode():
        found = detector([*images])
    del transform.resize, transform.postprocess
    return [{name: value for name, value in of_image.items() if "keypoints" not in name} for of_image in found]


@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_graph_finds_what_torchvision_does_in_a_batch(kind, is_fixed):
    detector = clear_detector(kind, body="resnet18")
    found, _ = run(detector, pictures(), is_fixed)
    expected = as_they_are(detector, [resize(detector, image) for image in pictures()])
    heatmaps = [of_image.pop("keypoints", None) for of_image in found]
    assert_same_detections(found, expected)
    assert kind != "keypoint_rcnn" or {maps.shape for maps in heatmaps} == {(12, 17, 56, 56)}


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
def test_constant_shapes_hold_what_there_is_nothing_some_or_more(kind):
    detector = clear_detector(kind, body="resnet18")
    full, empty = require_little(detector, pictures())
    for image, is_empty in ((full, False), (empty, True)):
        [found], rows = run(detector, [image], is_fixed=True)
        assert (len(found["boxes"]) == 0, rows) == (is_empty, 12)
    write_settings(detector, {"box_score_thresh" if kind == "mask_rcnn" else "score_thresh": 0.0})
    [found], rows = run(detector, [full], is_fixed=True)
    assert len(found["boxes"]) == rows == 12
    [found], rows = run(detector, [full, empty][1:], is_fixed=False)
    assert len(found["boxes"]) == rows == 12


def test_what_is_larger_than_its_frame_is_said():
    with pytest.raises(ValueError, match="an image is 60 x 90 when resized, this detector takes 64 x 80"):
        framed([torch.zeros(3, 60, 90)], (64, 80))
