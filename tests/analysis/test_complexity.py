"""Counts against closed forms and against the figures of the paper and of its published detectors."""

import pytest
import torch
from norton_det.models.detectors import DetectorSpec, build_from_spec
from norton_det.models.resnet import ResNetSpec, build_resnet50
from torch import nn

from norton_det.analysis.complexity import Count, count, count_detector, total
from norton_det.compression.plan import load_plan
from norton_det.layers.cp_conv import CPConv2d


def test_a_convolution_and_a_linear_layer_by_their_formulas():
    network = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, bias=False), nn.Flatten(), nn.Linear(8 * 6 * 4, 10))
    counts = count(network, torch.zeros(1, 3, 15, 11))
    assert counts["0"].macs == 8 * 6 * 4 * 3 * 5 * 5
    assert counts["2"].macs == 8 * 6 * 4 * 10
    assert counts[""].macs == counts["0"].macs + counts["2"].macs


@pytest.mark.parametrize("form", ["depthwise", "dense"])
def test_a_cp_convolution_counts_as_the_papers_stack_and_as_it_runs(form):
    layer = CPConv2d(16, 24, 3, rank=2, stride=2, padding=1, bias=False)
    layer.form = form
    counted = count(layer, torch.zeros(1, 16, 20, 12))[""]
    pointwise, vertical, horizontal = 16 * 48 * 20 * 12, 3 * 48 * 10 * 12, 3 * 48 * 10 * 6
    as_run = {"depthwise": pointwise + 9 * 48 * 10 * 6, "dense": 16 * 24 * 9 * 10 * 6 + 2 * 24 * 16 * 9}
    assert counted == Count(2 * (16 * 24 + 3 * 24 + 3 * 24), pointwise + vertical + horizontal, as_run[form])


def body(plan):
    dense = ResNetSpec.dense()
    return load_plan(plan).apply(dense) if plan else dense


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
    counted = count(build_resnet50(body(plan)), torch.zeros(1, 3, 224, 224))[""]
    assert parameters in (None, counted.parameters)
    assert counted.parameters / 1e6 == pytest.approx(millions, abs=0.01)
    assert counted.macs / 1e9 == pytest.approx(gmacs, abs=0.005)
    assert counted.macs / 1e9 == pytest.approx(published_gmacs, rel=0.03)


@pytest.mark.parametrize(
    ("kind", "classes", "plan", "millions"),
    [
        ("faster_rcnn", 91, None, 41.81),
        ("faster_rcnn", 91, "norton-43", 30.72),
        ("faster_rcnn", 91, "norton-77", 22.01),
        ("mask_rcnn", 91, None, 44.45),
        ("mask_rcnn", 91, "norton-43", 33.36),
        ("mask_rcnn", 91, "norton-77", 24.66),
        ("keypoint_rcnn", 2, None, 59.19),
        ("keypoint_rcnn", 2, "norton-43", 48.10),
        ("keypoint_rcnn", 2, "norton-77", 39.39),
    ],
)
def test_the_published_detectors_parameters(kind, classes, plan, millions):
    with torch.device("meta"):
        detector = build_from_spec(DetectorSpec(kind, classes, body(plan)))
    assert sum(p.numel() for p in detector.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    ("kind", "classes", "plan", "published_gmacs"),
    [
        ("faster_rcnn", 91, None, 134.85),
        ("faster_rcnn", 91, "norton-43", 111.47),
        ("faster_rcnn", 91, "norton-77", 93.39),
        ("keypoint_rcnn", 2, "norton-77", 95.97),
    ],
)
def test_the_published_detectors_macs(kind, classes, plan, published_gmacs):
    parts = count_detector(build_from_spec(DetectorSpec(kind, classes, body(plan))), 800, 800)
    assert total(parts).macs / 1e9 == pytest.approx(published_gmacs, rel=0.01)
    if plan is None:
        gmacs = {name: part.macs / 1e9 for name, part in parts.items()}
        assert gmacs == pytest.approx({"body": 52, "neck": 36, "rpn": 32, "box_head": 14}, abs=0.7)
