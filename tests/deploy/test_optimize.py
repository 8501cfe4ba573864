"""What `optimize` prepares, chooses and refuses."""

import pytest
import torch
from clear import assert_same_detections, clear_detector, detect, pictures
from detectors import tiny_classifier
from torch import nn
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights, fcos_resnet50_fpn, ssdlite320_mobilenet_v3_large

from norton_det.deploy import fold, treatments
from norton_det.deploy import optimize as optimizing
from norton_det.deploy.export import Description, describe_export
from norton_det.deploy.forms import choose_forms
from norton_det.deploy.optimize import TorchDetector, optimize
from norton_det.deploy.runtimes import ExportedDetector
from norton_det.keypoints import Keypoints
from norton_det.layers.cp_conv import CPConv2d, DepthwiseCPConv2d
from norton_det.models.settings import write_settings


@pytest.fixture(scope="module")
def images():
    return pictures()


def compressed():
    return clear_detector("faster_rcnn", "norton-77-all")


def test_each_layer_gets_the_form_that_the_timer_finds_fastest(images):
    detector = compressed()
    expected = detect(detector, images)
    asked = []

    def timer(shape, form, inputs):
        asked.append((shape, form, inputs))
        return 2.0 if (form == "dense") == (shape[0] == 64) else 1.0  # the neck's and the RPN's stay depthwise

    choose_forms(detector, images[0], timer)
    kept = [name for name, layer in detector.named_modules() if isinstance(layer, DepthwiseCPConv2d)]
    assert not [layer for layer in detector.modules() if isinstance(layer, CPConv2d)]
    assert kept == [*(f"backbone.fpn.layer_blocks.{i}.0" for i in range(4)), "rpn.head.conv.0.0"]
    rpn_sizes = {inputs for shape, _, inputs in asked if shape[:2] == (64, 64)}
    assert len(rpn_sizes) == 5
    assert_same_detections(detect(detector, images), expected)


def test_a_layer_that_meets_several_sizes_gets_the_form_with_the_smallest_sum(images):
    detector = compressed()
    seen = []

    def timer(shape, form, inputs):
        """Dense is a little faster on the largest map of the RPN, and much slower on each of the others."""
        seen.append(inputs[2])
        return (
            {"dense": 0.9, "depthwise": 1.0}[form]
            if inputs[2] == max(seen)
            else {"dense": 2.0, "depthwise": 1.0}[form]
        )

    choose_forms(detector, images[0], timer)
    assert isinstance(detector.rpn.head.conv[0][0], DepthwiseCPConv2d)


def test_what_a_runtime_gets_is_folded_and_in_its_forms(images):
    detector = compressed()
    prepared = optimizing.prepare(detector, images[0], lambda shape, form, inputs: float(form == "dense"))
    kinds = {type(module) for module in prepared.modules()}
    assert not kinds & {nn.BatchNorm2d, CPConv2d} and DepthwiseCPConv2d in kinds
    assert isinstance(prepared.backbone.fpn, fold.FoldedPyramid)
    assert any(isinstance(module, CPConv2d) for module in detector.modules())


def test_an_exported_file_resizes_as_evaluation_does():
    detector = clear_detector("fcos", body="resnet18")
    write_settings(detector, {"min_size": (64, 96), "max_size": 1333, "fixed_size": (70, 80)})
    described = describe_export(detector)
    assert (described.min_size, described.max_size, described.fixed_size) == (96, 1333, (70, 80))
    assert described.outputs == ("boxes", "labels", "scores")


@pytest.mark.parametrize(("kind", "more"), [("mask_rcnn_v2", "masks"), ("keypoint_rcnn", "heatmaps")])
def test_an_exported_file_gives_what_its_heads_do(kind, more):
    assert describe_export(clear_detector(kind)).outputs == ("boxes", "labels", "scores", more)


def test_a_detector_of_torchvision_has_the_names_that_it_is_given(images):
    detector = fcos_resnet50_fpn(weights=None, weights_backbone=None).eval()
    detector.categories = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    write_settings(detector, {"min_size": (64,), "max_size": 96})
    fast = optimize(detector, images[:1], "torch")
    assert fast.categories[:2] == ["__background__", "person"] and len(fast.categories) == 91
    assert len(detect(fast, images)) == len(images)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: tiny_classifier("resnet18"), "expected a detector, got a classifier"),
        (lambda: ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None), "SSD is not supported"),
    ],
)
def test_what_is_no_detector_of_ours_is_refused(model, message, images):
    with pytest.raises(ValueError, match=message):
        optimize(model(), images[:1], "torch")


def test_a_treatment_is_its_runtime_in_its_precision(monkeypatch):
    monkeypatch.setattr(treatments, "optimize", lambda detector, images, runtime, precision: f"{runtime} {precision}")
    found = {name: treatments.treated(None, name, []) for name in treatments.OPTIMISED}
    assert found == {name: name if " " in name else f"{name} float32" for name in treatments.OPTIMISED}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runtime": "tensorrt"}, "not one of auto, torch"),
        ({"runtime": "torch", "precision": "int8"}, "torch runs float32, bfloat16, float16, not 'int8'"),
        ({"runtime": "auto", "precision": "int4"}, "precision 'int4'"),
        ({"images": []}, "at least one image"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, message, images):
    with pytest.raises(ValueError, match=message):
        optimize(compressed(), **{"images": images[:1], **arguments})


EVERY = ("onnxruntime", "openvino", "torch")


@pytest.mark.parametrize(
    ("device", "precision", "installed", "chosen"),
    [
        ("cpu", "float32", EVERY, "openvino"),
        ("cpu", "float32", ("torch", "onnxruntime"), "onnxruntime"),
        ("cpu", "float32", ("torch",), "torch"),
        ("cpu", "bfloat16", ("torch", "onnxruntime"), "torch"),
        ("cpu", "int8", EVERY, "openvino"),
        ("cuda", "float32", EVERY, "torch"),
    ],
)
def test_auto_is_the_fastest_runtime_that_can_be_used(device, precision, installed, chosen, monkeypatch):
    monkeypatch.setattr(optimizing.importlib.util, "find_spec", lambda name: name in installed or None)
    assert optimizing._choose_runtime("auto", precision, torch.device(device)) == chosen


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_runtime_that_is_not_installed_is_said(runtime, images, monkeypatch):
    monkeypatch.setattr(optimizing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"{runtime} is not installed: pip install"):
        optimize(compressed(), images[:1], runtime)


@pytest.mark.parametrize("kind", ["keypoint_rcnn", "faster_rcnn"])
def test_the_keypoints_of_a_detector_are_known_in_every_runtime(kind, images):
    detector = clear_detector(kind)
    detector.keypoints = Keypoints.named([f"k{i}" for i in range(17)], [(0, 1)])
    expected = detector.keypoints if kind == "keypoint_rcnn" else None
    description = Description.from_json(describe_export(detector).to_json(), "a file")
    assert ExportedDetector(lambda image: [], description).keypoints == expected
    assert TorchDetector(detector).keypoints == expected
