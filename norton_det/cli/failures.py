"""What ends a command in one line: what a user can get wrong, and what a machine may lack."""

import errno
import re
import tempfile

import torch

LESS_MEMORY = "give it smaller images, or fewer at a time"
"""What to do where memory is short; a command module that knows better has a text of this name."""
_NO_MEMORY = re.compile(
    "out of memory|not enough memory|can.t allocate memory|bad[ _]alloc|_ALLOC_FAILED|insufficient memory", re.I
)
_AMOUNT = re.compile(r"(?:tried to|unable to|failed to) allocate ([\d.,]+ ?\w+)", re.I)
_WORKER_DIED = "DataLoader worker (pid"


def explain(error: Exception, less_memory: str = LESS_MEMORY) -> str | None:
    """Tell what went wrong; None where it is a fault of the program, whose traceback is worth more."""
    if _is_lack_of_memory(error):
        amount = _AMOUNT.search(str(error))
        asked = f" ({amount[1]} more were asked for)" if amount else ""
        return f"{_owner(error)} memory is not enough{asked}: {less_memory}"
    text = str(error)
    if _WORKER_DIED in text or "shared memory" in text:  # torch raises it wherever the signal of the death finds us
        way_on = "data.workers=0 needs none" if "shared memory" in text or "Bus error" in text else ""
        why = (
            f"; shared memory (/dev/shm) may be full: enlarge it (docker run --shm-size), {way_on}" if way_on else ""
        )
        first = text.splitlines()[0]
        return f"a process that reads images died{why}; --resume goes on from the last checkpoint ({first})"
    if isinstance(error, OSError) and error.strerror:
        where = error.filename or f"a file of this run, or of the temporary folder {tempfile.gettempdir()} (TMPDIR)"
        return f"{where}: {error.strerror}"
    return text if isinstance(error, ValueError | OSError | FloatingPointError) else None


def _is_lack_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return not isinstance(error, ValueError) and bool(_NO_MEMORY.search(str(error)))


def _owner(error: Exception) -> str:
    on_gpu = isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error) or "CUBLAS" in str(error)
    return "the GPU's" if on_gpu else "this machine's"
