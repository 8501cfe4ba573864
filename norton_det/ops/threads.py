"""Limits the CPU threads of torch for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch on so many CPU threads, inside a `with` or as a decorator of a function.

    Threads that begin inside take over the number.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


one_thread = partial(torch_threads, 1)
"""For work on many tiny matrices: on thousands of them more threads gain nothing, and wherever other programs keep
the cores busy each call waits milliseconds for the last of them."""
