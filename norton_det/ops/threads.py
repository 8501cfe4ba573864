"""Limits torch to one CPU thread for work on many tiny matrices."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread, inside a `with` or as a decorator of a function.

    On thousands of tiny matrices more threads gain nothing, and wherever other programs keep the cores busy
    each call waits milliseconds for the last of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
