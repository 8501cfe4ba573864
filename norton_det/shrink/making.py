"""Makes one choice: compresses and restores the plan's detector, writes it as a file, and loads that."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from norton_det.compression.plan import CompressionPlan
from norton_det.compression.recover import compress_and_recover
from norton_det.deploy.int8 import PLAIN, Int8Recipe
from norton_det.deploy.optimize import optimize
from norton_det.deploy.runtimes import Precision, load_exported
from norton_det.deploy.writing import files_of, write_model
from norton_det.models.persistence import detector_from_weights, save_weights
from norton_det.models.weights import read_weights
from norton_det.shrink.bench import Built
from norton_det.shrink.levers import NOTHING, Learnt

MINUTES = 5
"""Minutes of a plan's recovery, unless another length is asked for."""


@dataclass(frozen=True)
class Recovery:
    """Says how a compressed detector is restored: gradient steps, or minutes in their place, the seed, and where.

    Without a device it is restored where the dense detector is.
    """

    steps: int
    minutes: float | None
    seed: int
    device: torch.device | None = None

    def __str__(self) -> str:
        length = f"{self.steps} steps" if self.minutes is None else f"{self.minutes:g} minutes"
        return f"{length}, seed {self.seed}"


def restored(
    folder: Path,
    dense: nn.Module,
    learnt: Learnt,
    plan: CompressionPlan,
    photos: Sequence[Tensor],
    recovery: Recovery,
) -> nn.Module:
    """Return the detector of a plan for a size of images, compressed and restored on the photos, or the dense one.

    It is kept in the folder, where the next call finds it; a recovery that was stopped goes on.
    """
    if learnt == NOTHING:
        return dense
    path = folder / f"{learnt}, {recovery}.pth"
    if not path.is_file():
        unfinished = path.with_suffix(".recovery.pth")
        compressed, _ = compress_and_recover(
            dense,
            plan,
            photos,
            steps=recovery.steps,
            minutes=recovery.minutes,
            seed=recovery.seed,
            share=learnt.size,
            device=recovery.device,
            checkpoint=unfinished,
        )
        save_weights(path, compressed)
        unfinished.unlink(missing_ok=True)
    detector: nn.Module = detector_from_weights(read_weights(path))
    return detector


def write(
    detector: nn.Module, path: Path, precision: Precision, photos: Sequence[Tensor], recipe: Int8Recipe = PLAIN
) -> None:
    """Write a detector to a file for its runtime: .pth, .onnx or .xml; int8 takes its ranges from the photos."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pth":
        save_weights(path, detector)
    else:
        write_model(detector, path, photos, precision, recipe)


def load(path: Path, precision: Precision, photo: Tensor) -> Built:
    """Load a written file as its users should run it; weights (.pth) are optimised for torch."""
    if path.suffix == ".pth":
        return optimize(detector_from_weights(read_weights(path)), [photo], "torch", precision)
    return load_exported(path, precision)


def how_to_run(path: Path, precision: Precision) -> str:
    """Return the Python call that runs a file as it was measured."""
    if path.suffix == ".pth":
        return f'norton_det.optimize(norton_det.load_detector("{path}"), images, "torch")'
    told = ', precision="bfloat16"' if precision == "bfloat16" else ""
    return f'norton_det.load_detector("{path}"{told})'


def file_size(path: Path) -> int:
    """Return the size in bytes of all files of a detector."""
    return sum(file.stat().st_size for file in files_of(path))
