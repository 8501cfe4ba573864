"""Limits how many damaged images a training may meet."""

import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

from norton_det.engine import distributed

log = logging.getLogger(__name__)
T = TypeVar("T")


def within_limit(batches: Iterable[tuple[T, list[str]]], limit: int) -> Iterator[T]:
    """Yield the batches, without the lines on replaced damaged images that come with each, and log those lines.

    All processes must ask for batches in step. Each damaged image is logged and counted once, whichever process met
    it. Raises ValueError in all processes if more than `limit` were met.
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
