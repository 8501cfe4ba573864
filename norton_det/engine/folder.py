"""Guards the folder of a run: only one run at a time uses it, and the files of an earlier run are put aside."""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from norton_det.engine import distributed
from norton_det.files import free_path

log = logging.getLogger(__name__)
LOCK = ".lock"
KEPT = ("checkpoints", "metrics.jsonl", "tensorboard")
"""Files of one run that it continues when it is resumed."""
_RESULTS = ("config.yaml", "model_final.pth", "evaluation", "compression.json", "backbone_compressed.pth")
"""Other files that a run leaves."""


@contextmanager
def sole_run(lock: Path, place: str) -> Iterator[None]:
    """Keep other runs from a place inside the context; the several processes of one run count as one.

    The file `lock` names the run that has the place, and is locked for as long as its process lives. If that process
    has died, the next run takes over with a warning. Folders that were made for the lock are removed if they are
    empty at the end.

    Raises:
        ValueError: another run has the place (the message names it), or the place cannot be written to.
    """
    file, problem = None, ""
    made = [folder for folder in lock.parents if not folder.exists()]
    if distributed.is_main():
        try:
            file = _take(lock, place)
        except OSError as error:
            problem = f"{place}: {error.strerror}"
        except ValueError as error:
            problem = str(error)
    if problem := "".join(distributed.gather(problem)):
        raise ValueError(problem)
    try:
        yield
    finally:
        if file:
            lock.unlink(missing_ok=True)
            file.close()
            with suppress(OSError):  # a folder with something in it stays
                for folder in made:
                    folder.rmdir()


def _take(lock: Path, place: str) -> TextIO:
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = lock.open("a+", encoding="utf-8")
        file.seek(0)
        holder = file.read().strip()
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                told = f"{place} is in use by {holder or 'another run'}"
                raise ValueError(f"{told}: wait until that has ended, or name another") from None
            log.warning("%s cannot be locked (%s): see that no other run writes there", place, error.strerror)
            holder = ""
        if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            break
        file.close()  # the one before has just ended, and its file with it
    if holder:
        log.warning("%s was in use by %s, which is gone: this run takes its place", place, holder)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    return file


def put_aside(folder: Path, names: Iterable[str] = KEPT) -> None:
    """Move what an earlier run left in a folder, with its results, to `earlier-N` inside it, and log a warning."""
    left = [folder / name for name in names if (folder / name).exists()]
    if not (left and distributed.is_main()):
        return
    earlier = free_path(folder / "earlier")
    earlier.mkdir()
    for path in [*left, *(folder / name for name in _RESULTS if (folder / name).exists())]:
        path.rename(earlier / path.name)
    log.warning("%s holds another run, this one starts afresh; its files: %s", folder, earlier)
