"""Says what is known while a detector is being shrunk, a line at a time."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from norton_det.analysis.latency import quantile
from norton_det.shrink.choosing import Option
from norton_det.shrink.measuring import DenseTable

log = logging.getLogger(__name__)
BUSY = 1.5
"""Multiple of its least time that a reference call often takes on a busy machine."""


def tell_range(shipped: float, fastest: float) -> None:
    """Say what the dense detector takes as shipped, in milliseconds, and what the fastest choice would."""
    log.info(
        "an image takes about %.3g ms as shipped, in torch, and %.3g ms by the fastest that can be made here",
        shipped,
        fastest,
    )


def tell_table(table: DenseTable, unit: float) -> None:
    """Say what the dense detector takes, in milliseconds by the stopwatch's `unit`, and what levers leave of it."""
    takes = ", ".join(f"{unit * times[1.0]:.3g} ms in {precision}" for precision, times in table.times.items())
    log.info("the dense detector takes %s", takes)
    smaller = {f"{size:.0%}": share for size, share in table.sizes.items() if size < 1}
    log.info("agreement with images of %s, before they are learnt", _told(smaller))
    if fewer := dict([*table.proposals.items()][1:]):
        log.info("agreement with proposals of %s", _told(fewer))


def _told(shares: Mapping[Any, float]) -> str:
    return ", ".join(f"{amount}: {100 * share:.0f}" for amount, share in shares.items())


def tell_file(option: Option, what: str) -> None:
    """Say what a file does that was made."""
    log.info("%.3g ms, agreement %.1f: %s (%s)", option.milliseconds, option.agreement, option.choice, what)


def warn_of_noise(moods: Sequence[float]) -> None:
    """Warn if the reference, whose times `moods` are, often took much longer than at best."""
    slow = quantile(moods, 0.75) / min(moods)
    if slow > BUSY:
        log.warning(
            "the machine is busy: the same call often took %.1f times as long, so milliseconds may be off, and "
            "recovery takes fewer steps in its minutes",
            slow,
        )
