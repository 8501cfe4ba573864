"""Several images at a time, in every runtime, against one call for each."""

import threading

import pytest
import torch
from clear import assert_same_detections, clear_detector, detect, pictures

from norton_det.deploy.benchmark import measure
from norton_det.deploy.optimize import optimize
from norton_det.deploy.throughput import detect_stream, for_many
from norton_det.deploy.treatments import treated
from norton_det.in_flight import calls_at_once
from norton_det.ops.threads import torch_threads


@pytest.fixture(autouse=True)
def two_threads():
    with torch_threads(2):
        yield


def optimized(runtime, detector):
    pytest.importorskip(runtime)
    return optimize(detector, pictures()[:1], runtime)


@pytest.mark.parametrize(
    ("runtime", "kind"), [("torch", "mask_rcnn"), ("onnxruntime", "mask_rcnn"), ("openvino", "retinanet")]
)
def test_a_stream_finds_what_single_calls_find(runtime, kind):
    detector = clear_detector(kind, None, "resnet18")
    images = pictures() * 3
    callers = set()
    fast = optimized(runtime, detector)
    many = for_many(fast)
    assert (calls_at_once(fast), calls_at_once(many)) == (1, 2)
    assert (many.categories, many.category_ids) == (fast.categories, fast.category_ids)
    found = list(detect_stream(fast, (callers.add(threading.get_ident()) or image for image in images)))
    assert callers == {threading.get_ident()}  # images are read here
    assert_same_detections(found, detect(detector, pictures()) * 3)


def test_a_detector_that_is_not_optimised_is_called_one_by_one():
    detector, images = clear_detector("faster_rcnn", None, "resnet18"), pictures()
    with torch.inference_mode():
        assert_same_detections(list(detect_stream(detector, images)), detect(detector, images))


def test_images_a_second_are_measured_beside_latency():
    detector = clear_detector("faster_rcnn", None, "resnet18")
    images = pictures()[:1] * 2
    for treatment, is_several in (("torch as shipped", False), ("torch", True)):
        found = measure({"it": treated(detector, treatment, images)}, images, runs=1)["it"]
        assert found.images_a_second == pytest.approx(found.throughput_gain * 2 * 1000 / found.median)
        assert (found.throughput_gain != 1.0) == is_several
