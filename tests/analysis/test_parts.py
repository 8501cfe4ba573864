"""Time by part, and the machine's limits: what can be said of them without trusting a clock."""

from contextlib import contextmanager

import pytest
import torch
from norton_det.models.detectors import DetectorSettings, DetectorSpec, build_from_spec
from norton_det.models.resnet import ResNetSpec

from norton_det.analysis import parts as parts_module
from norton_det.analysis.parts import seconds_by_part
from norton_det.analysis.roofline import measure_roofline
from norton_det.deploy.treatments import SHIPPED, count_regions, fix_workload, treated, usable_treatments


@pytest.fixture
def detector():
    torch.manual_seed(0)
    settings = DetectorSettings(min_size=(64,), max_size=96, test_proposals=50)
    spec = DetectorSpec("mask_rcnn", 4, ResNetSpec.dense(0.125), 16, 16, 8, settings=settings)
    return build_from_spec(spec).eval()


def test_the_parts_add_up_and_none_is_left_out(detector):
    parts = seconds_by_part(detector, [torch.rand(3, 64, 96)], runs=1)
    assert set(parts) == {
        *("resize", "body", "neck", "rpn head", "proposals", "roi align", "heads", "post-processing", "rest")
    }
    assert min(parts.values()) > 0
    assert not detector.backbone.body._forward_hooks


def test_what_stands_inside_another_part_is_taken_out_of_it(detector, monkeypatch):
    clock = {"whole": 100, "resize": 5, "body": 20, "neck": 10, "rpn head": 4, "rpn": 14}
    clock |= {"roi heads": 40, "roi align": 6, "heads": 9}
    watched = {}

    @contextmanager
    def timed(taken, modules):
        watched.update(modules)
        taken.update(clock)
        yield

    monkeypatch.setattr(parts_module, "_timed", timed)
    parts = seconds_by_part(detector, [torch.rand(3, 64, 96)], runs=1)
    assert (parts["proposals"], parts["post-processing"], parts["rest"]) == (10, 25, 11)
    assert sum(parts.values()) == 100
    heads = detector.roi_heads
    assert set(watched["heads"]) == {heads.box_head, heads.box_predictor, heads.mask_head, heads.mask_predictor}
    assert watched["roi align"] == [heads.box_roi_pool, heads.mask_roi_pool]


def test_the_workload_is_the_same_whatever_the_weights(detector):
    images = [torch.rand(3, 64, 96)]
    for seed in (1, 2):
        torch.manual_seed(seed)
        for parameter in detector.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        fix_workload(detector, detections=5)
        regions = count_regions(detector, images)
        assert 30 <= regions["box"] <= 50 and regions["mask"] == 5
        assert len(detector(images)[0]["boxes"]) == 5


def test_as_shipped_is_a_copy_in_the_contiguous_layout(detector):
    detector.backbone.to(memory_format=torch.channels_last)
    shipped = treated(detector, SHIPPED, [torch.rand(3, 64, 96)])
    assert shipped.backbone.body["layer1"][0].conv2.weight.is_contiguous()
    assert not detector.backbone.body["layer1"][0].conv2.weight.is_contiguous()


def test_treatments_of_a_cpu():
    usable = usable_treatments(torch.device("cpu"))
    assert usable[:2] == [SHIPPED, "torch"]
    assert "torch float16" not in usable


def test_the_rates_are_positive():
    roofline = measure_roofline(torch.device("cpu"), size=64, runs=1)
    assert roofline.macs > 0 and roofline.bytes > 0
