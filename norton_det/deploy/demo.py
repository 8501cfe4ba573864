"""Loads the detectors of a demo: a file's, the dense one to compare it with, and COCO's if no file is named."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.compression.building import uncompressed
from norton_det.compression.recover import compress_and_recover
from norton_det.deploy.optimize import Runtime, optimize
from norton_det.deploy.runtimes import EXPORTED, load_exported
from norton_det.models.persistence import detector_from_weights, origin_of, save_weights, with_origin
from norton_det.models.settings import write_settings
from norton_det.models.smaller_images import size_settings
from norton_det.models.weights import coco_weights, read_weights

log = logging.getLogger(__name__)
COCO_PLAN = "norton-43"
"""The mildest preset, for a detector that nobody trains after it was compressed."""
COCO_MINUTES = 10
"""Minutes of its recovery."""
COCO_FILE = Path("output/coco_demo/model_final.pth")
COCO_FRAMES = 32
"""Frames on which it is restored."""


@dataclass(frozen=True)
class DemoDetector:
    """Holds a detector that is ready to run.

    Attributes:
        name: its name in pictures.
        detect: the detector, called like torchvision's, with `.categories`.
        is_trained: whether its findings mean anything.
    """

    name: str
    detect: Any
    is_trained: bool = True


@dataclass(frozen=True)
class RunOptions:
    """Says how all detectors of a demo run: on which device, in which runtime, and at which shorter side of the image
    in pixels (None: their own)."""

    device: torch.device
    runtime: Runtime
    size: int | None


def compressed_coco(frames: Sequence[Tensor]) -> Path:
    """Compress torchvision's COCO Faster R-CNN, downloaded once, and restore it on uint8 frames (3, H, W).

    Returns its file below output/, where it is kept for the next time. Raises ValueError if the weights are missing
    and cannot be downloaded.
    """
    weights = coco_weights()
    log.info(
        "COCO's Faster R-CNN is compressed by %s and restored on %d frames: %d minutes, once",
        COCO_PLAN,
        len(frames),
        COCO_MINUTES,
    )
    dense = detector_from_weights(weights)
    compressed, _ = compress_and_recover(
        dense,
        COCO_PLAN,
        [frame / 255 for frame in frames],
        minutes=COCO_MINUTES,
        checkpoint=COCO_FILE.with_name("recovery.pth"),
    )
    save_weights(COCO_FILE, with_origin(compressed, replace(origin_of(compressed), dense_weights=weights.source)))
    COCO_FILE.with_name("recovery.pth").unlink(missing_ok=True)
    return COCO_FILE


def demo_detectors(path: Path, dense: str | None, frame: Tensor, options: RunOptions) -> list[DemoDetector]:
    """Load the detector of a file and, if it is asked for, put the dense one to compare it with before it.

    Args:
        path: weights or an exported file.
        dense: a dense detector's file; or "" for the one that `path` says it came from, or if that is missing, the
            same network with random weights; or None for no comparison.
        frame: uint8 (3, H, W), of the size to be fast at.
        options: how the detectors run.

    Raises:
        ValueError: a file cannot be read, or there is nothing to compare with.
    """
    if path.suffix in EXPORTED:
        if options.runtime != "auto" or options.size:
            raise ValueError(f"{path}: an exported detector brings its own runtime and size")
        if dense == "":
            raise ValueError(f"{path}: an exported detector does not tell what it came from: --compare DENSE_WEIGHTS")
        detectors = [DemoDetector(path.stem, load_exported(path))]
        return [_dense(dense, frame, options), *detectors] if dense else detectors
    weights = read_weights(path)
    detector = detector_from_weights(weights)
    beside: list[DemoDetector] = []
    if dense is not None:
        if not weights.is_compressed:
            raise ValueError(f"{path} is dense: --compare takes a compressed detector")
        source = dense or origin_of(detector).dense_weights
        named = dense or (source and Path(source).exists())
        beside = [_dense(str(source), frame, options) if named else _random(path, detector, frame, options)]
    name = "compressed" if weights.is_compressed else "dense"
    return [*beside, DemoDetector(name, _optimized(detector, frame, options))]


def _dense(path: str, frame: Tensor, options: RunOptions) -> DemoDetector:
    weights = read_weights(path)
    if weights.is_compressed:
        raise ValueError(f"{path} is compressed: --compare takes a dense detector")
    return DemoDetector("dense", _optimized(detector_from_weights(weights), frame, options))


def _random(path: Path, compressed: nn.Module, frame: Tensor, options: RunOptions) -> DemoDetector:
    """Build with random weights the dense detector that a compressed one came from, as far as its file tells."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            dense = uncompressed(compressed)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; name it: --compare DENSE_WEIGHTS") from None
    log.warning("the dense detector that %s came from is not there: random weights show its speed alone", path)
    return DemoDetector("dense, random weights", _optimized(dense, frame, options), is_trained=False)


def _optimized(detector: Any, frame: Tensor, options: RunOptions) -> Any:
    if options.size:
        write_settings(detector, size_settings(detector, options.size / detector.transform.min_size[-1]))
    return optimize(detector.to(options.device).eval(), [frame / 255], options.runtime)
