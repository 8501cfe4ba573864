"""Predicts how far a choice agrees with the dense detector, as the product of what each lever leaves by itself.

What a number of proposals, a precision and images shown smaller leave is measured. What a plan leaves, and smaller
images that are learnt, is known once the detector was restored; until then it is read off a curve over what both are
known to lose before that, which is fitted to the restored detectors.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import nnls

from norton_det.deploy.runtimes import Precision
from norton_det.shrink.choosing import Option
from norton_det.shrink.levers import NOTHING, Choice, Learnt

STEEPNESS = (1.0, 0.3)
"""Steepness of the curve, exp(-STEEPNESS * losses), before a detector was restored: less than they show, so that one
is tried."""
DOUBT = 0.3
"""The weight of STEEPNESS beside restored detectors, as if one had lost that much: a few of them cannot tell what is
due to the plan and what to the size."""
LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class Quality:
    """Holds agreements in shares of 1, and predicts those of choices.

    Attributes:
        sizes: agreement of the dense detector at each size of images, which it has not learnt.
        proposals: its agreement at each number of proposals.
        precisions: its agreement in each precision.
        errors: the predicted error of each plan, 0 for the one that changes nothing.
        restored: agreement of the restored detectors, as their files showed it.
    """

    sizes: Mapping[float, float]
    proposals: Mapping[int, float]
    precisions: Mapping[Precision, float]
    errors: Mapping[str, float]
    restored: Mapping[Learnt, float] = field(default_factory=dict)

    def predict(self, choice: Choice) -> float:
        """Return the agreement, 0 to 100, that a choice will have."""
        return 100 * self._of_the_rest(choice) * self.share(choice.learnt)

    def corrected(self, made: Iterable[Option]) -> "Quality":
        """Return the quality corrected by the agreement of finished files."""
        shares: dict[Learnt, list[float]] = {}
        for option in made:
            if option.choice.learnt != NOTHING:
                share = option.agreement / 100 / max(self._of_the_rest(option.choice), LEAST_SHARE)
                shares.setdefault(option.choice.learnt, []).append(min(max(share, LEAST_SHARE), 1.0))
        return replace(self, restored={learnt: float(np.mean(values)) for learnt, values in shares.items()})

    def share(self, learnt: Learnt) -> float:
        """Return the share that a restored detector leaves; it lies between those of detectors that lose more, and
        less, before they are restored."""
        if learnt in self.restored:
            return self.restored[learnt]
        losses = self._losses(learnt)
        less, more = [1.0], [0.0]
        for other, share in self.restored.items():
            theirs = self._losses(other)
            if all(their <= own for their, own in zip(theirs, losses, strict=True)):
                less.append(share)
            if all(their >= own for their, own in zip(theirs, losses, strict=True)):
                more.append(share)
        return min(max(math.exp(-float(np.dot(self.steepness, losses))), *more), *less)

    @property
    def steepness(self) -> tuple[float, float]:
        """Return the steepness of the curve, fitted to the restored detectors by least squares."""
        losses = [*(self._losses(learnt) for learnt in self.restored), (DOUBT, 0.0), (0.0, DOUBT)]
        left = [*(-math.log(share) for share in self.restored.values()), *(DOUBT * value for value in STEEPNESS)]
        of_plan, of_size = nnls(np.array(losses), np.array(left))[0]
        return float(of_plan), float(of_size)

    def _losses(self, learnt: Learnt) -> tuple[float, float]:
        """Return what is lost before anything is learnt: the plan's predicted error, and the logarithm of what the
        size of images costs the dense detector."""
        return self.errors[learnt.plan], max(0.0, -math.log(max(self._shown(learnt.size), LEAST_SHARE)))

    def _shown(self, size: float) -> float:
        """Return what images of a size leave that are not learnt."""
        sizes = sorted(self.sizes)
        return float(np.interp(size, sizes, [self.sizes[size] for size in sizes]))

    def _of_the_rest(self, choice: Choice) -> float:
        shown = 1.0 if choice.learns else self._shown(choice.size)
        return shown * self.proposals[choice.proposals] * self.precisions[choice.precision]
