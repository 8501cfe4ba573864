"""Where a detector in torch spends its time."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from norton_det.analysis.latency import synchronise


@torch.inference_mode()
def seconds_by_part(detector: Any, images: Sequence[Tensor], runs: int) -> dict[str, float]:
    """Median seconds of each part of a torchvision R-CNN on images, and of the rest: they add up to the whole.

    Parts: resize (with normalisation), body, neck, rpn head, proposals (anchors, decoding, NMS), roi align, heads,
    post-processing (boxes of the heads, NMS, masks) and what is left.
    """
    samples: dict[str, list[float]] = defaultdict(list)
    for number in range(runs + 1):
        taken = _seconds(detector, images)
        if number:
            for part, seconds in taken.items():
                samples[part].append(seconds)
    return {part: statistics.median(values) for part, values in samples.items()}


def _seconds(detector: Any, images: Sequence[Tensor]) -> dict[str, float]:
    heads = detector.roi_heads
    kinds = [kind for kind in ("box", "mask", "keypoint") if getattr(heads, f"{kind}_head", None) is not None]
    taken: dict[str, float] = defaultdict(float)
    with _timed(
        taken,
        {
            "whole": [detector],
            "resize": [detector.transform],
            "body": [detector.backbone.body],
            "neck": [detector.backbone.fpn],
            "rpn head": [detector.rpn.head],
            "rpn": [detector.rpn],
            "roi heads": [heads],
            "roi align": [getattr(heads, f"{kind}_roi_pool") for kind in kinds],
            "heads": [getattr(heads, f"{kind}_{part}") for kind in kinds for part in ("head", "predictor")],
        },
    ):
        detector(list(images))
    parts = {name: taken[name] for name in ("resize", "body", "neck", "rpn head")}
    parts["proposals"] = taken["rpn"] - taken["rpn head"]
    parts |= {name: taken[name] for name in ("roi align", "heads")}
    parts["post-processing"] = taken["roi heads"] - taken["roi align"] - taken["heads"]
    parts["rest"] = taken["whole"] - sum(parts.values())
    return parts


@contextmanager
def _timed(taken: dict[str, float], modules: dict[str, list[Any]]) -> Iterator[None]:
    """Add up the seconds of the modules' calls by name while it lasts."""
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
