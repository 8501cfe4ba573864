"""Measures a detector: builds it for the runtime that will run it, times its calls, computes its agreement."""

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.analysis.latency import quantile, seconds_of
from norton_det.api import findings_of
from norton_det.deploy.int8 import PLAIN, Int8Recipe
from norton_det.deploy.optimize import Runtime, openvino_model, optimize
from norton_det.deploy.runtimes import ExportedDetector, Precision, compile_openvino
from norton_det.evaluation.agreement import SCORE, Agreement, Findings, agreement_of
from norton_det.models.smaller_images import size_settings
from norton_det.shrink.levers import set_levers

Built = Any
"""A detector as its runtime runs it, called like torchvision's."""
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 2, 12, 3.0
"""At least LEAST_ROUNDS rounds over the photos are timed, and up to MOST_ROUNDS while they take less than SECONDS."""
TYPICAL = 0.25
FEW_RESAMPLES = 2
"""Resamples for an interval that nobody looks at."""


@dataclass(frozen=True)
class Timed:
    """Holds the time of a call, as a share of a reference call's: the typical one, and the 95th percentile."""

    typical: float
    p95: float


class Stopwatch:
    """Times calls on photos in turn with those of a reference, so that other load on the machine slows both alike.

    A photo's typical time is the lower quartile of its calls, since other load can only make calls longer. A
    detector's is the median over the photos, which may be of several shapes.

    Attributes:
        beside: milliseconds of the reference, from earlier commands, at the start, and beside each detector.
    """

    def __init__(self, reference: Built, photos: Sequence[Tensor], earlier: Sequence[float] = ()) -> None:
        self._reference, self._photos = reference, photos
        self.beside = [*earlier, _typical(*self._times(reference))]

    @property
    def unit(self) -> float:
        """Return the milliseconds of the reference while the machine does nothing else, as far as was measured."""
        return quantile(self.beside, TYPICAL)

    @property
    def least(self) -> float:
        """Return the fewest milliseconds of the reference that were seen."""
        return min(self.beside)

    @property
    def moods(self) -> list[float]:
        """Return the reference's time beside each detector, in multiples of the unit; far above 1: a busy machine."""
        return [milliseconds / self.unit for milliseconds in self.beside]

    def time(self, built: Built) -> Timed:
        """Time a detector on the photos, one at a time."""
        own, beside = self._times(built, self._reference)
        reference = _typical(beside)
        self.beside.append(reference)
        return Timed(_typical(own) / reference, quantile(list(chain(*own)), 0.95) / reference)

    def _times(self, *detectors: Built) -> list[list[list[float]]]:
        """Return the milliseconds of each call, by detector and photo, in turn, after an uncounted first call."""
        for detector in detectors:
            detector([self._photos[0]])
        times: list[list[list[float]]] = [[[] for _ in self._photos] for _ in detectors]
        started = time.perf_counter()
        for number in range(MOST_ROUNDS):
            if number >= LEAST_ROUNDS and time.perf_counter() - started > SECONDS:
                break
            for place, photo in enumerate(self._photos):
                for detector, own in zip(detectors, times, strict=True):
                    own[place].append(1000 * seconds_of(partial(detector, [photo])))
        return times


def _typical(times: Sequence[Sequence[float]]) -> float:
    return statistics.median(quantile(of_photo, TYPICAL) for of_photo in times)


@dataclass(frozen=True)
class AsShipped:
    """Calls a detector as torchvision ships it: torch, in float32, nothing optimised."""

    detector: nn.Module

    @torch.inference_mode()
    def __call__(self, images: list[Tensor]) -> Any:
        """Return what the detector finds on images."""
        return self.detector(images)


@dataclass(frozen=True)
class Bench:
    """Holds the functions that measure; tests replace them by plain ones.

    Attributes:
        build: builds a detector in a precision for the runtime.
        sketch: builds it quickly for timing only: it takes the same time, but in int8 what it finds means nothing.
        share: measures the time of one image, as a share of the reference's.
        agreement: computes the agreement with the dense detector on the held-back photos, 0 to 100.
    """

    build: Callable[[nn.Module, Precision], Built]
    sketch: Callable[[nn.Module, Precision], Built]
    share: Callable[[Built], float]
    agreement: Callable[[Built], float]


def build(
    detector: nn.Module, runtime: Runtime, precision: Precision, photos: Sequence[Tensor], recipe: Int8Recipe = PLAIN
) -> Built:
    """Return a detector as its runtime runs it; int8 follows a recipe and takes its ranges from the photos."""
    if precision != "int8":
        return optimize(detector, photos[:1], runtime, precision)
    return compile_openvino(openvino_model(detector, photos, precision, recipe), precision, "a detector in int8")


def at_size(built: Built, detector: nn.Module, share: float) -> Built:
    """Return the same built detector for images at a share of the image size of `detector`."""
    if isinstance(built, ExportedDetector):
        settings = size_settings(detector, share)
        return built.at_size(settings["min_size"][0], settings["max_size"], settings["fixed_size"])
    changed = copy.copy(built)
    changed.detector = set_levers(built.detector, detector, share, proposals=0)
    return changed


@dataclass(frozen=True)
class Reference:
    """Holds what the dense detector finds on photos, and what it is sure of, which is taken as the truth."""

    own: Findings
    truth: Findings

    def first(self, count: int) -> "Reference":
        """Return what was found on the first photos."""
        return Reference(_first_images(self.own, count), _first_images(self.truth, count))


def agreement_with(reference: Reference, built: Built, photos: Sequence[Tensor], **how: int) -> Agreement:
    """Compute the agreement of a detector with the dense one on the photos."""
    found = findings_of(built, photos, "agreement")
    return agreement_of(reference.own, found, SCORE, truth=reference.truth, **how)


def _first_images(findings: Findings, count: int) -> Findings:
    results = [result for result in findings.results if result["image_id"] < count]
    return replace(findings, results=results, images=min(count, findings.images))


def points(agreement: Agreement) -> float:
    """Put an agreement into one number, 0 to 100: the AP, its mean over boxes and masks or keypoints."""
    found = [task.metrics["AP"] for task in agreement.tasks.values()]
    return statistics.mean(ap for ap in found if not math.isnan(ap))
