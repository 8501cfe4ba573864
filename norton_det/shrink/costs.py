"""Predicts how many milliseconds a choice takes from a few measured ones.

The time of an image has a constant part, a part that grows with its area (the layers that look at all of it), and a
part that grows with the number of proposals (the heads that look at each). A plan changes the last two; a fixed
workload at two sizes of images shows by how much.
"""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace

import numpy as np

from norton_det.deploy.runtimes import Precision
from norton_det.shrink.choosing import Option
from norton_det.shrink.levers import DENSE, Choice

SLOWEST = 2.0
"""The most time that a plan's heads may take, in shares of the dense one's: more would be noise."""
FASTEST = 0.1
"""The least time that a choice takes, in shares of the dense one's at that size; less would be noise."""


@dataclass(frozen=True)
class Line:
    """Holds the time of a fixed workload: `fixed` for an image without area, `layers` more for one of full size."""

    fixed: float
    layers: float

    @classmethod
    def through(cls, full: float, small: float, size: float) -> "Line":
        """Compute the line through the times of an image at full size and at a share `size` of its sides.

        Examples:
            >>> Line.through(10.0, 4.0, 0.5)
            Line(fixed=2.0, layers=8.0)
        """
        layers = (full - small) / (1 - size**2)
        return cls(full - layers, layers)

    def share_between(self, least: "Line", most: "Line") -> float:
        """Return how far the time of its layers is on the way from one line's, 0, to another's, 1."""
        way = most.layers - least.layers
        return min(max((self.layers - least.layers) / way, 0.0), 1.0) if way > 0 else 1.0

    def towards(self, most: "Line", share: float) -> "Line":
        """Return the line that lies a share of the way to another."""
        return Line(*(own + share * (other - own) for own, other in zip(astuple(self), astuple(most), strict=True)))


@dataclass(frozen=True)
class Costs:
    """Holds what was measured, in any unit of time.

    Attributes:
        sizes: times of the dense detector with all its proposals, by precision and size.
        proposals: times of the dense detector at full size, by precision and number of proposals, its full number
            included.
        plans: times of a fixed workload, by plan (DENSE included) and precision.
        unit: milliseconds of that unit.
        corrections: factors of the milliseconds of a plan in a precision, as finished files have shown.
    """

    sizes: Mapping[Precision, Mapping[float, float]]
    proposals: Mapping[Precision, Mapping[int, float]]
    plans: Mapping[tuple[str, Precision], Line]
    unit: float = 1.0
    corrections: Mapping[tuple[str, Precision], float] = field(default_factory=dict)

    def predict(self, choice: Choice) -> float:
        """Return the predicted milliseconds of a choice."""
        return self._uncorrected(choice) * self._correction(choice)

    def corrected(self, made: Iterable[Option]) -> "Costs":
        """Return the costs corrected by the milliseconds of finished files."""
        ratios: dict[tuple[str, Precision], list[float]] = {}
        for option in made:
            ratio = option.milliseconds / self._uncorrected(option.choice)
            ratios.setdefault((option.choice.plan, option.choice.precision), []).append(ratio)
        corrections = {key: float(np.mean(values)) for key, values in ratios.items()}
        return replace(self, corrections=corrections)

    def _correction(self, choice: Choice) -> float:
        """Return the correction of the same plan, or if it was not made, the mean of others in the same precision."""
        own = self.corrections.get((choice.plan, choice.precision))
        if own is not None:
            return own
        others = [
            ratio
            for (plan, precision), ratio in self.corrections.items()
            if precision == choice.precision and (plan == DENSE) == (choice.plan == DENSE)
        ]
        return float(np.mean(others)) if others else 1.0

    def _uncorrected(self, choice: Choice) -> float:
        by_area = {size**2: time for size, time in self.sizes[choice.precision].items()}
        areas = sorted(by_area)
        dense = float(np.interp(choice.size**2, areas, [by_area[area] for area in areas]))
        own, plain = self.plans[choice.plan, choice.precision], self.plans[DENSE, choice.precision]
        heads_more = own.fixed - plain.fixed
        time = dense + (own.layers - plain.layers) * choice.size**2 + heads_more
        by_number = self.proposals[choice.precision]
        most, least = max(by_number), min(by_number)
        if most > least:
            heads = (by_number[most] - by_number[least]) * most / (most - least)
            share = min(max(1 + heads_more / heads, 0.0), SLOWEST) if heads > 0 else 1.0
            time += share * (by_number[choice.proposals] - by_number[most])
        return self.unit * max(time, FASTEST * dense)
