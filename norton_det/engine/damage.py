"""How many damaged images a training may meet."""

import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

from norton_det.engine import distributed

log = logging.getLogger(__name__)
T = TypeVar("T")


def within_limit(batches: Iterable[tuple[T, list[str]]], limit: int) -> Iterator[T]:
    """Batches without what comes with each: a line on every damaged image that another one stands in for.

    All processes ask for batches in step. Each damaged image is told and counted once, whichever process met it.
    Raises ValueError in all of them where more than `limit` were met.
    """
    met: set[str] = set()
    for batch, damaged in batches:
        [found] = distributed.largest(len({*damaged} - met))
        if found:
            for line in sorted({line for part in distributed.gather(damaged) for line in part} - met):
                met.add(line)
                if len(met) > limit:
                    raise ValueError(f"{line}: damaged images met: {len(met)}, tolerated: {limit}")
                log.warning("%s: another image takes its place", line)
        yield batch
