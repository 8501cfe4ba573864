"""Checkpoints: atomic, self-describing, resumable; tensors and plain types only."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from norton_det.files import atomic_path
from norton_det.models.detectors import settings_of
from norton_det.models.weights import categories_of

log = logging.getLogger(__name__)


def describe(model: nn.Module) -> dict[str, Any]:
    """What rebuilds a model beside its tensors' shapes: a detector's settings, eps and categories."""
    if not isinstance(model, GeneralizedRCNN):
        return {}
    categories, ids = categories_of(model)
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings_of(model)).items()}
    return {
        "detector": {**settings, "norm_eps": float(model.backbone.body["bn1"].eps)},
        "categories": categories,
        "category_ids": ids,
    }


def save_weights(path: Path, model: nn.Module, **description: Any) -> None:
    """Write a self-describing weights file atomically; `description` holds plain types (config, plan, kept).

    Raises OSError as `save` does.
    """
    save({"model": model.state_dict(), **describe(model), **description}, path)


def save(content: dict[str, Any], path: Path) -> None:
    """Write a file under a temporary name and rename it, so that no half-written one ever stands at `path`.

    Raises OSError, which names the path, where it cannot be written, as on a full disk.
    """
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch's writer hides the file's error
        if not isinstance(cause, OSError):
            raise
        raise OSError(f"cannot write {path}: {cause.strerror or cause}") from None


class CheckpointFolder:
    """The newest few training checkpoints of a run, `iteration_0001000.pth` and so on.

    The newest is the one written last: a folder may still hold later iterations of an earlier run.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(self, iteration: int, content: dict[str, Any]) -> None:
        """Write the checkpoint of an iteration, then drop the oldest beyond `keep`.

        What a process that was killed left half-written is removed first.
        """
        for unfinished in self.folder.glob(".*-iteration_*.pth"):
            unfinished.unlink()
        save(content, self.folder / f"iteration_{iteration:07d}.pth")
        for old in self._paths()[: -self.keep]:
            old.unlink()

    def load_newest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None; a damaged one is named in a warning and passed over."""
        for path in reversed(self._paths()):
            try:
                content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # any damage counts, whatever the reader makes of it
                log.warning("%s is damaged (%s): using the one before", path, type(error).__name__)
                continue
            log.info("resuming from %s", path)
            return content
        return None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("iteration_*.pth"), key=lambda path: (path.stat().st_mtime_ns, path.name))
