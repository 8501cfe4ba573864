"""Sets up all that measures the detectors of one command."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from norton_det.deploy.int8 import PLAIN
from norton_det.deploy.optimize import Runtime
from norton_det.deploy.runtimes import Precision
from norton_det.evaluation.agreement import Agreement
from norton_det.shrink.bench import (
    FEW_RESAMPLES,
    Bench,
    Built,
    Reference,
    Stopwatch,
    agreement_with,
    at_size,
    build,
    points,
)
from norton_det.shrink.levers import NOTHING, SIZES
from norton_det.shrink.memory import Memory
from norton_det.shrink.photos import Photos
from norton_det.shrink.quantising import Recipes

TIMED = 4
"""Photos on which detectors are timed."""
CALIBRATION = 64
"""The most photos from which int8 takes its ranges."""
LOOKED_AT = 32
"""The most held-back photos that are used for the tables and to choose the parts to leave in floating point; a
finished file is compared on all."""


REFERENCE = "milliseconds of the reference"


@dataclass(frozen=True)
class Instruments:
    """Holds all that measures.

    Attributes:
        bench: the functions that measure the tables.
        stopwatch: times detectors.
        compare: computes the agreement of a built detector with the dense one.
        recipes: finds how detectors are quantised.
    """

    bench: Bench
    stopwatch: Stopwatch
    compare: Callable[[Built], Agreement]
    recipes: Recipes


def set_up(
    memory: Memory, dense: nn.Module, photos: Photos, runtime: Runtime, first: Precision, reference: Reference
) -> Instruments:
    """Set up what measures detectors in a runtime.

    Agreement is with the dense detector's findings, `reference`; times are taken beside the dense detector at the
    smallest size, in the `first` precision.
    """
    calibration = photos.fitted[:CALIBRATION]
    timed = [photos.held[number * len(photos.held) // TIMED] for number in range(TIMED)]
    smallest_images = at_size(build(dense, runtime, first, calibration), dense, SIZES[-1])
    stopwatch = Stopwatch(smallest_images, timed, memory.get(REFERENCE, ()))
    memory.put(REFERENCE, stopwatch.beside)  # a list that grows with each detector that is timed

    def time(built: Built) -> float:
        return stopwatch.time(built).typical

    few, found_on_few = photos.held[:LOOKED_AT], reference.first(LOOKED_AT)

    def agreement(built: Built) -> float:
        return points(agreement_with(found_on_few, built, few, resamples=FEW_RESAMPLES))

    recipes = Recipes(memory, calibration, time, agreement)

    def built(detector: nn.Module, precision: Precision) -> Built:
        recipe = recipes.of(str(NOTHING), lambda: dense).recipe if precision == "int8" else PLAIN
        return build(detector, runtime, precision, calibration, recipe)

    def sketch(detector: nn.Module, precision: Precision) -> Built:
        return build(detector, runtime, precision, calibration[:1])

    bench = Bench(built, sketch, time, agreement)
    return Instruments(bench, stopwatch, partial(agreement_with, reference, photos=photos.held), recipes)
