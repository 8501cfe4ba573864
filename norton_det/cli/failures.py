"""Turns errors into one line: what a user can get wrong, and what a machine may lack."""

import errno
import os
import re

LESS_MEMORY = "give it smaller images, or fewer at a time"
"""Advice if memory is short; a command's module with better advice has a text of this name."""
_NO_MEMORY = re.compile(
    "out of memory|not enough memory|can.t allocate memory|bad[ _]alloc|_ALLOC_FAILED|insufficient memory", re.I
)
_AMOUNT = re.compile(r"(?:tried to|unable to|failed to) allocate ([\d.,]+ ?\w+)", re.I)


def one_line(error: Exception, less_memory: str = LESS_MEMORY) -> str | None:
    """Return a line that says what went wrong, or None for a fault of the program, which needs its traceback."""
    text = str(error)
    if _is_lack_of_memory(error):
        on_gpu = "CUDA" in text or "CUBLAS" in text
        amount = _AMOUNT.search(text)
        asked = f" ({amount[1]} more were asked for)" if amount else ""
        return f"{'the GPU' if on_gpu else 'this machine'} has not enough memory{asked}: {less_memory}"
    if text.startswith("DataLoader worker (pid"):  # torch raises it wherever the signal of that death arrives
        return f"a process that reads images died; --resume goes on from the last checkpoint ({text})"
    if isinstance(error, BrokenPipeError):
        return f"whoever read the output, or a process that worked with this one, is gone ({text})"
    if isinstance(error, OSError) and error.errno is not None:
        temporary = os.environ.get("TMPDIR", "/tmp")
        where = error.filename or f"a file of this run, or one in the temporary folder (TMPDIR: {temporary})"
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        return f"{where}: {'a file stands where a folder is needed' if in_the_way else error.strerror}"
    return text if isinstance(error, ValueError | OSError | FloatingPointError) else None


def _is_lack_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return not isinstance(error, ValueError) and bool(_NO_MEMORY.search(str(error)))
