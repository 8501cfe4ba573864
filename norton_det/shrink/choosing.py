"""The choice: of all that could be made, what serves a goal best. All of it is looked at, so the choice is exact."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from norton_det.shrink.levers import Choice

POINTS = 0.5
"""Of agreement, that make it worth another attempt."""
FASTER = 0.97
"""Of the milliseconds of the best, that make it worth another attempt."""


@dataclass(frozen=True)
class Option:
    """A detector that could be made or was, with its milliseconds an image and its agreement, 0 to 100."""

    choice: Choice
    milliseconds: float
    agreement: float


class Goal(Protocol):
    """What is asked for."""

    def is_met(self, option: Option) -> bool:
        """Whether an option does what is asked."""

    def rank(self, option: Option) -> tuple[float, float]:
        """Sort options that do, the best one last."""

    def nearest(self, options: Sequence[Option]) -> Option:
        """Return the best of options that all fail."""

    def is_clearly_better(self, option: Option, than: Option) -> bool:
        """Whether an option is worth making beside another that does what is asked."""


@dataclass(frozen=True)
class Deadline:
    """The most agreement within so many milliseconds an image."""

    milliseconds: float

    def is_met(self, option: Option) -> bool:
        """Whether it is fast enough."""
        return option.milliseconds <= self.milliseconds

    def rank(self, option: Option) -> tuple[float, float]:
        """By agreement, of equal ones the fastest last."""
        return option.agreement, -option.milliseconds

    def nearest(self, options: Sequence[Option]) -> Option:
        """The fastest."""
        return min(options, key=lambda option: option.milliseconds)

    def is_clearly_better(self, option: Option, than: Option) -> bool:
        """Whether it agrees by POINTS more."""
        return option.agreement > than.agreement + POINTS

    def __str__(self) -> str:
        return f"{self.milliseconds:g} ms"


@dataclass(frozen=True)
class LeastAgreement:
    """The fewest milliseconds with at least so much agreement, 0 to 100."""

    agreement: float

    def is_met(self, option: Option) -> bool:
        """Whether it agrees enough."""
        return option.agreement >= self.agreement

    def rank(self, option: Option) -> tuple[float, float]:
        """By speed, of equal ones that which agrees most last."""
        return -option.milliseconds, option.agreement

    def nearest(self, options: Sequence[Option]) -> Option:
        """The one that agrees most."""
        return max(options, key=lambda option: option.agreement)

    def is_clearly_better(self, option: Option, than: Option) -> bool:
        """Whether it is faster by more than measuring errs."""
        return option.milliseconds < FASTER * than.milliseconds

    def __str__(self) -> str:
        return f"agreement {self.agreement:g}"


def best(options: Iterable[Option], goal: Goal) -> Option | None:
    """Return the best option that does what is asked; None where none does."""
    return max((option for option in options if goal.is_met(option)), key=goal.rank, default=None)


def front(options: Iterable[Option]) -> list[Option]:
    """Return the options that no other beats in both, the fastest first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda each: (each.milliseconds, -each.agreement)):
        if not kept or option.agreement > kept[-1].agreement:
            kept.append(option)
    return kept
