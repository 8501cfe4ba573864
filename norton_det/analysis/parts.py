"""Measures where a detector in torch spends its time."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from norton_det.analysis.complexity import count, count_detector
from norton_det.analysis.latency import synchronise
from norton_det.models.parts import regions


@torch.inference_mode()
def seconds_by_part(detector: Any, images: Sequence[Tensor], runs: int) -> dict[str, float]:
    """Measure the median seconds of each part of a detector on images, and of the rest: they add up to the whole.

    The parts of an R-CNN are resize (with normalisation), the body's stem and stages, neck, rpn head, proposals
    (anchors, decoding, NMS), roi align, heads, post-processing (boxes of the heads, NMS, masks) and the rest. Those
    of a one-stage detector are resize, stem and stages, neck, heads (towers and predictors), post-processing (choice
    of candidates, decoding, NMS) and the rest, which is the anchors.
    """
    samples: dict[str, list[float]] = defaultdict(list)
    for number in range(runs + 1):
        taken = _seconds(detector, images)
        if number:
            for part, seconds in taken.items():
                samples[part].append(seconds)
    return {part: statistics.median(values) for part, values in samples.items()}


def _seconds(detector: Any, images: Sequence[Tensor]) -> dict[str, float]:
    behind, split = (_two_stages, _split_two_stages) if regions(detector) else (_one_stage, _split_one_stage)
    watched = {
        "whole": [detector],
        "resize": [detector.transform],
        "body": [detector.backbone.body],
        **_stages(detector.backbone.body),
        "neck": [detector.backbone.fpn],
        **behind(detector),
    }
    taken: dict[str, float] = defaultdict(float)
    with _timed(taken, watched):
        detector(list(images))
    stages = {name: taken[name] for name in _stages(detector.backbone.body)}
    stem = {"stem": taken["body"] - sum(stages.values())}
    parts = {"resize": taken["resize"], **stem, **stages, "neck": taken["neck"]} | split(taken)
    return parts | {"rest": taken["whole"] - sum(parts.values())}


def macs_by_part(detector: Any, height: int, width: int) -> dict[str, int]:
    """Count the MACs, as they run, of the parts that have any, on one image of (height, width) pixels as it enters
    the body, with as many regions as there may be."""
    counts = {part: found.macs_as_run for part, found in count_detector(detector, height, width).items()}
    backbone = count(detector.backbone, torch.zeros(1, 3, height, width))
    stages = {name: backbone[f"body.layer{name[-1]}"].macs_as_run for name in _stages(detector.backbone.body)}
    parts = {"stem": counts.pop("body") - sum(stages.values()), **stages, "neck": counts.pop("neck")}
    if "rpn" in counts:
        parts["rpn head"] = counts.pop("rpn")
        most = detector.roi_heads.detections_per_img
        counts = {part: macs if part == "box_head" else macs * most for part, macs in counts.items()}
    return parts | {"heads": sum(counts.values())}


def _stages(body: Any) -> dict[str, list[Any]]:
    """Return the stages of a ResNet, by name."""
    children = dict(body.named_children())
    return {f"stage {name[-1]}": [stage] for name, stage in children.items() if name.startswith("layer")}


def _two_stages(detector: Any) -> dict[str, list[Any]]:
    """Return the modules of an R-CNN behind its neck that are timed, by name."""
    found = regions(detector).values()
    return {
        "rpn head": [detector.rpn.head],
        "rpn": [detector.rpn],
        "roi heads": [detector.roi_heads],
        "roi align": [region.pooler for region in found],
        "heads": [module for region in found for module in (region.head, region.predictor)],
    }


def _split_two_stages(taken: Mapping[str, float]) -> dict[str, float]:
    return {
        "rpn head": taken["rpn head"],
        "proposals": taken["rpn"] - taken["rpn head"],
        "roi align": taken["roi align"],
        "heads": taken["heads"],
        "post-processing": taken["roi heads"] - taken["roi align"] - taken["heads"],
    }


def _one_stage(detector: Any) -> dict[str, list[Any]]:
    return {"heads": [detector.head], "anchors": [detector.anchor_generator]}


def _split_one_stage(taken: Mapping[str, float]) -> dict[str, float]:
    """Split the times of a one-stage detector; its post-processing is what the modules leave of the whole."""
    modules = ("resize", "body", "neck", "heads", "anchors")
    return {"heads": taken["heads"], "post-processing": taken["whole"] - sum(taken[name] for name in modules)}


@contextmanager
def _timed(taken: dict[str, float], modules: dict[str, list[Any]]) -> Iterator[None]:
    """Add up the seconds of the modules' calls, by name, inside the `with` block."""
    hooks = []
    for name, members in modules.items():
        for module in members:
            started: list[float] = []
            hooks.append(module.register_forward_pre_hook(lambda *_, s=started: s.append(_now())))
            hooks.append(module.register_forward_hook(lambda *_, n=name, s=started: _add(taken, n, _now() - s.pop())))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(taken: dict[str, float], name: str, seconds: float) -> None:
    taken[name] += seconds


def _now() -> float:
    synchronise()
    return time.perf_counter()
