"""Measures how much memory one call takes beside what is held already."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Return the bytes at the peak of one call, above what was held before it.

    On a GPU this is what torch has allocated. On a CPU it is the most resident memory that the process had, as Linux
    counts it, and 0 where the system keeps no count. Runtimes that keep their buffers between calls show little, and
    a process that has run much may reuse some tens of MiB unseen.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _give_back_freed()
    counted = _forget_peak()
    before = _kibibytes("VmRSS") if counted else 0
    call()
    return (_kibibytes("VmHWM") - before) * 1024 if counted else 0


def _give_back_freed() -> None:
    """Free what nothing reaches, and return it to the system, or the call could free or reuse it unseen.

    Only glibc returns all of it.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _forget_peak() -> bool:
    """Let the peak, ``VmHWM``, begin anew at what is resident now (proc(5)); False where the system cannot."""
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _kibibytes(entry: str) -> int:
    status = (_PROCESS / "status").read_text()
    return int(status.split(f"{entry}:")[1].split()[0])
