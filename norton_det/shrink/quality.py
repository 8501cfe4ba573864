"""Predicts how far a choice agrees with the dense detector, as the product of what each lever leaves by itself.

What a size, a number of proposals and a precision leave is measured. What a plan leaves is known once it was
recovered; until then it is read off a curve over its predicted error, which is fitted to the recovered plans.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from norton_det.deploy.runtimes import Precision
from norton_det.shrink.choosing import Option
from norton_det.shrink.levers import Choice

STEEPNESS = 1.0
"""Steepness of the curve, exp(-STEEPNESS * predicted error), before a plan was recovered: less than plans show, so
that one is tried."""
LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class Quality:
    """Holds agreements in shares of 1, and predicts those of choices.

    Attributes:
        sizes: agreement of the dense detector at each size of images.
        proposals: its agreement at each number of proposals.
        precisions: its agreement in each precision.
        errors: the predicted error of each plan, 0 for the one that changes nothing.
        recovered: agreement of the recovered plans, as their files showed it.
    """

    sizes: Mapping[float, float]
    proposals: Mapping[int, float]
    precisions: Mapping[Precision, float]
    errors: Mapping[str, float]
    recovered: Mapping[str, float] = field(default_factory=dict)

    def predict(self, choice: Choice) -> float:
        """Return the agreement, 0 to 100, that a choice will have."""
        return 100 * self._without_plan(choice) * self.plan(choice.plan)

    def corrected(self, made: Iterable[Option]) -> "Quality":
        """Return the quality corrected by the agreement of finished files."""
        shares: dict[str, list[float]] = {}
        for option in made:
            if self.errors[option.choice.plan]:
                share = option.agreement / 100 / max(self._without_plan(option.choice), LEAST_SHARE)
                shares.setdefault(option.choice.plan, []).append(min(max(share, LEAST_SHARE), 1.0))
        recovered = {plan: float(np.mean(values)) for plan, values in shares.items()}
        return Quality(self.sizes, self.proposals, self.precisions, self.errors, recovered)

    def plan(self, name: str) -> float:
        """Return the share that a plan leaves, which lies between those of plans with smaller and larger errors."""
        if name in self.recovered:
            return self.recovered[name]
        error = self.errors[name]
        highest = min((share for plan, share in self.recovered.items() if self.errors[plan] <= error), default=1.0)
        lowest = max((share for plan, share in self.recovered.items() if self.errors[plan] >= error), default=0.0)
        return min(max(math.exp(-self.steepness * error), lowest), highest)

    @property
    def steepness(self) -> float:
        """Return the steepness of the curve, fitted to the recovered plans by least squares."""
        points = [(self.errors[plan], -math.log(share)) for plan, share in self.recovered.items()]
        squares = sum(error**2 for error, _ in points)
        return sum(error * fall for error, fall in points) / squares if squares else STEEPNESS

    def _without_plan(self, choice: Choice) -> float:
        sizes = sorted(self.sizes)
        size = float(np.interp(choice.size, sizes, [self.sizes[size] for size in sizes]))
        return size * self.proposals[choice.proposals] * self.precisions[choice.precision]
