"""Keeps several calls running at a time, which share the cores; their results come in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NoReturn, TypeVar

import torch

from norton_det.ops.threads import torch_threads

T = TypeVar("T")
R = TypeVar("R")
MOST = 4
"""The most calls at a time: each takes memory for all that it computes."""


def most_at_once() -> int:
    """Return how many calls at a time share the threads that torch may use."""
    return min(torch.get_num_threads(), MOST)


def calls_at_once(detector: object) -> int:
    """Return with how many calls at a time, each from a thread of its own, a detector is to be used: 1 unless it has
    an attribute `at_once`."""
    return int(getattr(detector, "at_once", 1))


def in_order(call: Callable[[T], R], items: Iterable[T], at_once: int) -> Generator[R]:
    """Yield the result of `call` for each item, in the order of the items; `at_once` calls run at a time.

    They run in threads, among which torch's are divided, or here if `at_once` is 1. Items are taken as they are
    needed: at most 2 * `at_once` of them have results that nobody asked for yet. An exception of a call or of the
    items is raised in its turn. Closing the iterator waits for the calls that run.
    """
    if at_once == 1:
        yield from map(call, items)
        return
    with torch_threads(max(1, torch.get_num_threads() // at_once)), ThreadPoolExecutor(at_once) as threads:
        waiting: deque[Future[R]] = deque()
        try:
            for one in _calls(call, items):
                waiting.append(threads.submit(one))
                if len(waiting) == 2 * at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _calls(call: Callable[[T], R], items: Iterable[T]) -> Iterator[Callable[[], R]]:
    """Yield a call for each item; an exception of the items becomes the last call, which raises it."""
    try:
        for item in items:
            yield partial(call, item)
    except Exception as error:
        yield partial(_raise, error)


def _raise(error: Exception) -> NoReturn:
    raise error
