"""Counts against closed forms and against the figures of the paper, of its published detectors and of torchvision."""

import pytest
import torch
from detectors import ALL_KINDS, tiny_detector
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torchvision.models import get_model_weights

from norton_det.analysis.complexity import Count, count, count_detector, total
from norton_det.compression.building import build_network
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.settings import read_settings, write_settings
from norton_det.models.structure import named_structure


def test_a_convolution_and_a_linear_layer_by_their_formulas():
    network = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, bias=False), nn.Flatten(), nn.Linear(8 * 6 * 4, 10))
    counts = count(network, torch.zeros(1, 3, 15, 11))
    assert counts["0"].macs == 8 * 6 * 4 * 3 * 5 * 5
    assert counts["2"].macs == 8 * 6 * 4 * 10
    assert counts[""].macs == counts["0"].macs + counts["2"].macs


@pytest.mark.parametrize("kind", ["faster_rcnn_v2", "retinanet", "fcos"])
def test_fvcore_counts_the_same(kind):
    detector, image = tiny_detector(kind, "resnet18", "[0.]*2+[0.3]*10"), torch.zeros(1, 3, 64, 96)
    analysis = FlopCountAnalysis(detector.backbone, (image,)).unsupported_ops_warnings(False)
    assert count(detector.backbone, image)[""].macs_as_run == analysis.by_operator()["conv"]


@pytest.mark.parametrize("form", ["depthwise", "dense"])
def test_a_cp_convolution_counts_as_the_papers_stack_and_as_it_runs(form):
    layer = CPConv2d(16, 24, 3, rank=2, stride=2, padding=1, bias=False)
    layer.form = form
    counted = count(layer, torch.zeros(1, 16, 20, 12))[""]
    pointwise, vertical, horizontal = 16 * 48 * 20 * 12, 3 * 48 * 10 * 12, 3 * 48 * 10 * 6
    as_run = {"depthwise": pointwise + 9 * 48 * 10 * 6, "dense": 16 * 24 * 9 * 10 * 6 + 2 * 24 * 16 * 9}
    assert counted == Count(2 * (16 * 24 + 3 * 24 + 3 * 24), pointwise + vertical + horizontal, as_run[form])


@pytest.mark.parametrize(
    ("plan", "parameters", "millions", "gmacs", "published_gmacs"),
    [
        (None, 25_557_032, 25.56, 4.089, 4.09),
        ("norton-43", 14_509_496, 14.51, 2.31, 2.32),
        ("norton-47", 13_507_690, 13.51, 2.108, 2.08),
        ("norton-59", 10_525_342, 10.52, 1.474, 1.49),
        ("norton-69", None, 7.96, 0.963, 0.96),
        ("norton-77", 5_885_736, 5.88, 0.900, 0.92),
    ],
)
def test_the_papers_resnet50(plan, parameters, millions, gmacs, published_gmacs):
    network = build_network(named_structure(None, "resnet50", 1000), plan)
    counted = count(network, torch.zeros(1, 3, 224, 224))[""]
    assert parameters in (None, counted.parameters)
    assert counted.parameters / 1e6 == pytest.approx(millions, abs=0.01)
    assert counted.macs / 1e9 == pytest.approx(gmacs, abs=0.005)
    assert counted.macs / 1e9 == pytest.approx(published_gmacs, rel=0.03)


@pytest.mark.parametrize(
    ("kind", "classes", "plan", "millions", "gmacs"),
    [
        ("faster_rcnn", 91, None, 41.81, 134.85),
        ("faster_rcnn", 91, "norton-43", 30.72, 111.47),
        ("faster_rcnn", 91, "norton-77", 22.01, 93.39),
        ("mask_rcnn", 91, None, 44.45, None),
        ("mask_rcnn", 91, "norton-43", 33.36, None),
        ("mask_rcnn", 91, "norton-77", 24.66, None),
        ("keypoint_rcnn", 2, None, 59.19, None),
        ("keypoint_rcnn", 2, "norton-43", 48.10, None),
        ("keypoint_rcnn", 2, "norton-77", 39.39, 95.97),
    ],
)
def test_the_papers_detectors(kind, classes, plan, millions, gmacs):
    counted = total(count_detector(build_network(named_structure(kind, "resnet50", classes), plan), 800, 800))
    assert counted.parameters / 1e6 == pytest.approx(millions, abs=0.006)
    if gmacs is not None:
        assert counted.macs / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_the_parts_of_a_faster_rcnn_in_gmacs():
    parts = count_detector(build_network(named_structure("faster_rcnn", "resnet50", 91)), 800, 800)
    gmacs = {name: part.macs / 1e9 for name, part in parts.items()}
    assert gmacs == pytest.approx({"body": 52, "neck": 36, "rpn": 32, "box_head": 14}, abs=0.7)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("faster_rcnn", "fasterrcnn_resnet50_fpn"),
        ("faster_rcnn_v2", "fasterrcnn_resnet50_fpn_v2"),
        ("retinanet", "retinanet_resnet50_fpn"),
        ("retinanet_v2", "retinanet_resnet50_fpn_v2"),
        ("fcos", "fcos_resnet50_fpn"),
    ],
)
def test_the_figures_that_torchvision_publishes(kind, name):
    published = get_model_weights(name).COCO_V1.meta
    detector = build_network(named_structure(kind, "resnet50", 91))
    counted = total(count_detector(detector, 800, 800))
    frozen = sum(p.numel() for n, p in detector.backbone.body.named_parameters() if "bn" in n or "downsample.1" in n)
    is_frozen = kind in ("faster_rcnn", "retinanet", "fcos")  # there the body's BatchNorm has no parameters
    assert counted.parameters - is_frozen * frozen == published["num_params"]
    assert counted.macs / 1e9 == pytest.approx(published["_ops"], abs=0.001)


PLACES = 12 * 8 + 6 * 4 + 3 * 2 + 2 * 1 + 1 * 1
"""Of the five levels from a stride of 8 on, for an image of 64 x 96 pixels."""
TOWER = 4 * 9 * 64 * 64


@pytest.mark.parametrize(
    ("kind", "classes", "boxes"),
    [
        ("retinanet", 9 * 3, 9 * 4),
        ("retinanet_v2", 9 * 3, 9 * 4),
        ("fcos", 3, 4 + 1),
    ],
)
def test_the_towers_of_one_stage_over_all_levels(kind, classes, boxes):
    parts = count_detector(tiny_detector(kind, "resnet18", channels=64), 64, 96)
    assert list(parts) == ["body", "neck", "classification_head", "regression_head"]
    assert parts["classification_head"].macs == PLACES * (TOWER + 9 * 64 * classes)
    assert parts["regression_head"].macs == PLACES * (TOWER + 9 * 64 * boxes)


def test_regions_are_of_the_poolers_size():
    detector = tiny_detector("mask_rcnn", "resnet18")
    pooling = read_settings(detector)["mask_roi_pool"]
    write_settings(detector, {"mask_roi_pool": {**pooling, "output_size": [10, 12]}, "rpn_post_nms_top_n_test": 70})
    parts = count_detector(detector, 64, 96)
    mask = (
        9 * (64 * 16 + 3 * 16 * 16) + 4 * 16 * 16 + 4 * 16 * 3
    )  # convolutions; a transposed one; classes, 4 x as many
    assert parts["mask_head"].macs == 10 * 12 * mask
    assert parts["box_head"].macs == 70 * (64 * 49 * 32 + 32 * 32 + 32 * 3 + 32 * 12)
    assert total(parts).macs == sum(part.macs for name, part in parts.items() if name != "mask_head")


@pytest.mark.parametrize("plan", [None, "norton-59-all"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_no_parameter_is_missed_and_none_counted_twice(kind, plan):
    detector = tiny_detector(kind, plan=plan, channels=64)
    assert total(count_detector(detector, 64, 96)).parameters == sum(p.numel() for p in detector.parameters())


def test_a_factorised_tower_counts_over_all_levels_by_the_papers_formula():
    parts = count_detector(tiny_detector("fcos", plan={"parts": {"classification_head": 1}}, channels=64), 64, 96)
    assert parts["classification_head"].macs == PLACES * (4 * (64 * 64 + 3 * 64 + 3 * 64) + 9 * 64 * 3)
    assert parts["regression_head"].macs == PLACES * (TOWER + 9 * 64 * 5)


def test_counting_leaves_the_module_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    count(network, torch.zeros(1, 3, 8, 8))
    assert network.training and network[0].weight.device.type == "cpu"
    assert not network[0]._forward_hooks and not network[1].num_batches_tracked
