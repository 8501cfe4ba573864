"""Time by part, and the machine's limits: what can be said of them without trusting a clock."""

from contextlib import contextmanager

import pytest
import torch
import torchvision
from detectors import tiny_detector

from norton_det.analysis import parts as parts_module
from norton_det.analysis.parts import seconds_by_part
from norton_det.analysis.roofline import measure_roofline
from norton_det.deploy.treatments import SHIPPED, count_regions, fix_workload, treated, usable_treatments
from norton_det.models.settings import write_settings

TWO_STAGES = ("faster_rcnn", "mask_rcnn", "keypoint_rcnn", "faster_rcnn_v2", "mask_rcnn_v2")
ONE_STAGE = ("retinanet", "retinanet_v2", "fcos")
CANDIDATES = 30
BODY = ("stem", "stage 1", "stage 2", "stage 3", "stage 4")


def few_candidates(kind):
    """A detector of CANDIDATES proposals, or candidates of a level, with thresholds such as trained ones have."""
    detector = tiny_detector(kind, "resnet18", classes=4, channels=64)
    if kind in ONE_STAGE:
        write_settings(detector, {"topk_candidates": CANDIDATES, "score_thresh": 0.05})
    else:
        limits = {"rpn_pre_nms_top_n_test": CANDIDATES, "rpn_post_nms_top_n_test": CANDIDATES}
        write_settings(detector, {**limits, "box_score_thresh": 0.05})
    return detector


@pytest.fixture
def images():
    return [torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("kind", ["mask_rcnn", "faster_rcnn_v2", *ONE_STAGE])
def test_the_parts_add_up_and_none_is_left_out(kind, images):
    detector = few_candidates(kind)
    parts = seconds_by_part(detector, images, runs=1)
    behind = {"heads"} if kind in ONE_STAGE else {"rpn head", "proposals", "roi align", "heads"}
    assert set(parts) == {"resize", *BODY, "neck", *behind, "post-processing", "rest"}
    assert min(parts.values()) > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in detector.modules())


def with_clock(monkeypatch, clock):
    """Let the parts take what a clock says; returns which modules are watched, by name."""
    watched = {}

    @contextmanager
    def timed(taken, modules):
        watched.update(modules)
        taken.update(clock)
        yield

    monkeypatch.setattr(parts_module, "_timed", timed)
    return watched


def test_what_stands_inside_another_part_is_taken_out_of_it(images, monkeypatch):
    clock = {"whole": 100, "resize": 5, "body": 20, "stage 2": 8, "neck": 10, "rpn head": 4, "rpn": 14}
    watched = with_clock(monkeypatch, clock | {"roi heads": 40, "roi align": 6, "heads": 9})
    detector = few_candidates("mask_rcnn")
    parts = seconds_by_part(detector, images, runs=1)
    assert (parts["stem"], parts["stage 2"], parts["proposals"]) == (12, 8, 10)
    assert (parts["post-processing"], parts["rest"]) == (25, 11)
    assert sum(parts.values()) == 100
    heads = detector.roi_heads
    assert set(watched["heads"]) == {heads.box_head, heads.box_predictor, heads.mask_head, heads.mask_predictor}
    assert watched["roi align"] == [heads.box_roi_pool, heads.mask_roi_pool]


def test_of_one_stage_what_no_module_takes_is_post_processing(images, monkeypatch):
    watched = with_clock(monkeypatch, {"whole": 100, "resize": 5, "body": 20, "neck": 10, "heads": 40, "anchors": 2})
    detector = few_candidates("fcos")
    parts = seconds_by_part(detector, images, runs=1)
    assert (parts["heads"], parts["post-processing"], parts["rest"]) == (40, 23, 2)
    assert sum(parts.values()) == 100
    assert (watched["heads"], watched["anchors"]) == ([detector.head], [detector.anchor_generator])


def with_other_weights(detector, seed):
    torch.manual_seed(seed)
    for parameter in detector.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return detector


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", TWO_STAGES)
def test_the_workload_of_an_rcnn_is_the_same_whatever_the_weights(kind, seed, images):
    detector = with_other_weights(few_candidates(kind), seed)
    fix_workload(detector, detections=5)
    seen = count_regions(detector, images)
    assert 0.6 * CANDIDATES <= seen["box"] <= CANDIDATES
    assert set(seen.values()) <= {seen["box"], 5}
    assert detector(images)[0]["labels"].tolist() == [1] * 5


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ONE_STAGE)
def test_the_workload_of_one_stage_is_the_same_whatever_the_weights(kind, seed, images, monkeypatch):
    detector = with_other_weights(few_candidates(kind), seed)
    fix_workload(detector, detections=5)
    assert count_regions(detector, images) == {}
    assert detector(images)[0]["labels"].tolist() == [1] * 5
    met = []
    real = torchvision.ops.boxes.batched_nms
    monkeypatch.setattr(
        torchvision.ops.boxes,
        "batched_nms",
        lambda boxes, scores, *rest: met.append(boxes) or real(boxes, scores, *rest),
    )
    detector(images)
    places = (96, 24, 6, 2, 1)  # of the levels
    anchors = 1 if kind == "fcos" else 9
    assert [len(boxes) for boxes in met] == [sum(min(CANDIDATES, anchors * count) for count in places)]
    levels = [torch.zeros(1, 1, *size) for size in ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))]
    [known] = detector.anchor_generator(detector.transform(images)[0], levels)
    known = torchvision.ops.clip_boxes_to_image(known, (64, 96))
    assert torch.cdist(met[0], known).min(dim=1).values.max() < 1e-3


def test_as_shipped_is_a_copy_in_the_contiguous_layout(images):
    detector = few_candidates("faster_rcnn")
    detector.backbone.to(memory_format=torch.channels_last)
    shipped = treated(detector, SHIPPED, images)
    assert shipped.backbone.body["layer1"][0].conv2.weight.is_contiguous()
    assert not detector.backbone.body["layer1"][0].conv2.weight.is_contiguous()


def test_treatments_of_a_cpu():
    usable = usable_treatments(torch.device("cpu"))
    assert usable[:2] == [SHIPPED, "torch"]
    assert "torch float16" not in usable


def test_the_rates_are_positive():
    roofline = measure_roofline(torch.device("cpu"), size=64, runs=1)
    assert roofline.macs > 0 and roofline.bytes > 0
