"""Writes a run's numbers to a JSON-lines file, to TensorBoard and to the console's progress bar."""

import json
import logging
import os
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from norton_det.engine import distributed
from norton_det.files import atomic_path, to_json

log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends JSON objects, one a line, to `path`, and shows a few numbers on a progress bar with the time left.

    If TensorBoard is installed, the same numbers go into the folder `tensorboard` beside `path`. Of several
    processes only the main one writes and shows anything.
    """

    def __init__(self, path: Path, iterations: int, start: int = 0) -> None:
        writes = distributed.is_main()
        if writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_lines_from(path, start)
        self._board = _tensorboard(path.parent / "tensorboard", start) if writes else None
        self._file = (path if writes else Path(os.devnull)).open("a", encoding="utf-8")
        self._bar = tqdm(total=iterations, initial=start, desc="train", dynamic_ncols=True, disable=not writes)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._board:
            self._board.close()
        self._file.close()

    def step(self) -> None:
        """Advance the progress bar by one iteration."""
        self._bar.update()

    def write(self, iteration: int, values: dict[str, float]) -> None:
        """Write the numbers of an iteration and show the loss and the learning rate."""
        self._file.write(to_json({"iteration": iteration, **values}) + "\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, iteration)
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", lr=f"{values['lr']:.1e}")

    @staticmethod
    def _drop_lines_from(path: Path, start: int) -> None:
        """Drop the lines after the checkpoint, which a resumed run writes again; for a fresh run drop all lines."""
        lines: list[str] = []
        if path.exists() and start:
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["iteration"] <= start:
                        lines.append(line + "\n")
                except (ValueError, KeyError):
                    continue
        with atomic_path(path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")


def _tensorboard(folder: Path, start: int) -> Any:
    """Return TensorBoard's writer, which replaces events after iteration `start`, or None if it is not installed.

    Also returns None, with a warning, if it is installed but cannot be imported.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    except Exception as error:  # packages of incompatible versions raise errors of many kinds
        log.warning("TensorBoard cannot be imported, so it gets no numbers: %s", error)
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)


def gpu_memory() -> dict[str, float]:
    """Return the most memory that tensors took on this process's GPU so far, in MiB; an empty dict without a GPU."""
    used = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    return {"gpu_memory": used} if used else {}


class Averages:
    """Holds the means over the steps since the last reading."""

    def __init__(self) -> None:
        self._values: dict[str, deque[float]] = {}

    def add(self, values: dict[str, float]) -> None:
        """Add one step's numbers."""
        for name, value in values.items():
            self._values.setdefault(name, deque()).append(value)

    def read(self) -> dict[str, float]:
        """Return the means, and start over."""
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        self._values.clear()
        return means
