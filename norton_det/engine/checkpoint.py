"""Writes and reads training checkpoints: atomically, tensors and plain types only."""

import logging
from pathlib import Path
from typing import Any

from norton_det.files import load_tensors, save_tensors

log = logging.getLogger(__name__)


class CheckpointFolder:
    """Holds the newest few training checkpoints of one run, `iteration_0001000.pth` and so on."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(self, iteration: int, content: dict[str, Any]) -> None:
        """Write the checkpoint of an iteration, then delete all but the newest `keep`.

        Half-written files that a killed process left are removed first.
        """
        for unfinished in self.folder.glob(".*-iteration_*.pth"):
            unfinished.unlink()
        save_tensors(self.folder / f"iteration_{iteration:07d}.pth", content)
        for old in self._paths()[: -self.keep]:
            old.unlink()

    def load_newest(self) -> dict[str, Any] | None:
        """Return the newest checkpoint that can be read, or None; a warning names each damaged one that it skips."""
        for path in reversed(self._paths()):
            try:
                content: dict[str, Any] = load_tensors(path)
            except ValueError as error:
                log.warning("%s; using the one before", error)
                continue
            log.info("resuming from %s", path)
            return content
        log.info("no checkpoint in %s: training starts at its beginning", self.folder)
        return None

    def _paths(self) -> list[Path]:
        found = self.folder.glob("iteration_*.pth")  # by number: copying a folder changes its times
        return sorted(found, key=lambda path: (len(path.name), path.name))
