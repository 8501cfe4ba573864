"""Chooses what serves a goal best among all that could be made; it looks at every option, so the choice is exact."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from norton_det.shrink.levers import Choice

POINTS = 0.5
"""Points of agreement that a further attempt must promise to gain."""
WITHIN = 1.02
"""Multiple of a deadline that still keeps it: a repetition of the same measurement differs by as much."""
FASTER = 0.97
"""Share of the best option's milliseconds below which a further attempt must promise to come."""


@dataclass(frozen=True)
class Option:
    """Holds a detector that could be made or was, with its milliseconds for an image and its agreement, 0 to 100."""

    choice: Choice
    milliseconds: float
    agreement: float


class Goal(Protocol):
    """Says what is asked for."""

    def is_met(self, option: Option) -> bool:
        """Tell whether an option meets the goal."""

    def rank(self, option: Option) -> tuple[float, float]:
        """Return a key that sorts options that meet the goal, the best one last."""

    def nearest(self, options: Sequence[Option]) -> Option:
        """Return the best of options that all fail."""

    def is_clearly_better(self, option: Option, than: Option) -> bool:
        """Tell whether an option is worth making although another already meets the goal."""


@dataclass(frozen=True)
class Deadline:
    """Asks for the most agreement within a number of milliseconds for an image."""

    milliseconds: float

    def is_met(self, option: Option) -> bool:
        """Tell whether an option is fast enough, but for the error of measuring."""
        return option.milliseconds <= WITHIN * self.milliseconds

    def rank(self, option: Option) -> tuple[float, float]:
        """Return a key that sorts by agreement, and equal ones so that the fastest is last."""
        return option.agreement, -option.milliseconds

    def nearest(self, options: Sequence[Option]) -> Option:
        """Return the fastest option."""
        return min(options, key=lambda option: option.milliseconds)

    def is_clearly_better(self, option: Option, than: Option) -> bool:
        """Tell whether an option agrees by more than POINTS more."""
        return option.agreement > than.agreement + POINTS

    def __str__(self) -> str:
        return f"{self.milliseconds:g} ms"


@dataclass(frozen=True)
class LeastAgreement:
    """Asks for the fewest milliseconds with at least a given agreement, 0 to 100."""

    agreement: float

    def is_met(self, option: Option) -> bool:
        """Tell whether an option agrees enough."""
        return option.agreement >= self.agreement

    def rank(self, option: Option) -> tuple[float, float]:
        """Return a key that sorts by speed, and equal ones so that the one that agrees most is last."""
        return -option.milliseconds, option.agreement

    def nearest(self, options: Sequence[Option]) -> Option:
        """Return the option that agrees most."""
        return max(options, key=lambda option: option.agreement)

    def is_clearly_better(self, option: Option, than: Option) -> bool:
        """Tell whether an option is faster by more than the error of measuring."""
        return option.milliseconds < FASTER * than.milliseconds

    def __str__(self) -> str:
        return f"agreement {self.agreement:g}"


def best(options: Iterable[Option], goal: Goal) -> Option | None:
    """Return the best option that meets the goal, or None if none does."""
    return max((option for option in options if goal.is_met(option)), key=goal.rank, default=None)


def front(options: Iterable[Option]) -> list[Option]:
    """Return the options that no other beats in both speed and agreement, the fastest first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda each: (each.milliseconds, -each.agreement)):
        if not kept or option.agreement > kept[-1].agreement:
            kept.append(option)
    return kept
