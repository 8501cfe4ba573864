"""Measures how much memory one call takes beside what is held already."""

import ctypes
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import torch

INTERVAL = 0.001
"""Seconds between two looks at the process."""


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Return the bytes at the peak of one call, above what was held before it.

    On a GPU this is what torch has allocated; on a CPU it is the process's resident memory, looked at every
    millisecond, and 0 where the system does not tell it (no /proc). Runtimes that keep their buffers between calls
    show little.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _give_back_freed()
    before = peak = _resident()
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(INTERVAL):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        ended.set()
        watcher.join()
    return peak - before


def _give_back_freed() -> None:
    """Make the C library return the freed memory that it keeps, which a call could reuse unseen; only glibc can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident() -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0
