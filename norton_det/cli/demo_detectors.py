"""The detectors that a demo runs: the ones that are named, else the newest that was trained, else COCO's."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from norton_det.compression.plan import load_plan
from norton_det.compression.recover import compress_and_recover
from norton_det.config import load_config
from norton_det.deploy.optimize import Runtime, optimize
from norton_det.deploy.runtimes import EXPORTED, load_exported
from norton_det.engine.checkpoint import save_weights
from norton_det.models.detectors import DetectorSpec, build_from_spec, settings_of
from norton_det.models.resnet import ResNetSpec
from norton_det.models.weights import coco_weights, detector_from_weights, read_weights

log = logging.getLogger(__name__)
TRAINED = "model_final.pth"
COCO_PLAN = "norton-43"
"""The mildest preset, for a detector that nobody trains after it was compressed."""
COCO_FOLDER = Path("output/coco_demo")
COCO_FRAMES = 32
LAST_WIDTH = ResNetSpec.dense().widths["layer4"]


@dataclass(frozen=True)
class DemoDetector:
    """A detector ready to run, called like torchvision's, with `.categories`.

    Attributes:
        name: what a picture calls it.
        detect: the detector.
        is_trained: whether its findings mean anything.
    """

    name: str
    detect: Any
    is_trained: bool = True


@dataclass(frozen=True)
class Treatment:
    """How a demo's detectors run, all alike: where, in which runtime, and the shorter side that they see in pixels
    (None: their own)."""

    device: torch.device
    runtime: Runtime
    size: int | None


def find_weights(weights: str | None, config: str | None) -> Path | None:
    """The file that a demo runs: `weights`; else what the configuration trained or starts from; else the newest
    model_final.pth below output/; None where there is none.

    Raises ValueError for a configuration that has not been trained.
    """
    if weights is not None:
        return Path(weights)
    if config is not None:
        settings = load_config(config)
        trained = Path(settings.output_dir) / TRAINED
        if settings.model.weights != "none" and not trained.exists():
            return Path(settings.model.weights)
        if not trained.exists():
            raise ValueError(f"{config}: {trained} is not there; train it, or name a detector with --weights")
        return trained
    found = max(Path("output").rglob(TRAINED), key=lambda path: path.stat().st_mtime, default=None)
    if found:
        log.info("the newest trained detector: %s", found)
    return found


def compressed_coco(frames: Sequence[Tensor]) -> Path:
    """torchvision's COCO Faster R-CNN, downloaded once, compressed and restored on uint8 frames (3, H, W); kept below
    output/ for the next time.

    Raises ValueError where it is not there and cannot be downloaded.
    """
    dense = coco_weights()
    log.info(
        "COCO's Faster R-CNN is compressed by %s and restored on %d frames: minutes, once", COCO_PLAN, len(frames)
    )
    plan = load_plan(COCO_PLAN)
    path = COCO_FOLDER / TRAINED
    compressed, report = compress_and_recover(
        detector_from_weights(dense),
        plan,
        [frame / 255 for frame in frames],
        checkpoint=path.with_name("recovery.pth"),
    )
    save_weights(path, compressed, plan=plan.to_dict(), kept=report.kept, dense_weights=dense.source)
    return path


def demo_detectors(path: Path, dense: str | None, frame: Tensor, treatment: Treatment) -> list[DemoDetector]:
    """The detector of a file, and before it the dense one that it is compared with, where one is asked for.

    Args:
        path: weights or an exported file.
        dense: None: no comparison; a dense detector's file; or "": the one that the file says it came from, and
            where that is not there, one of the same structure with random weights.
        frame: uint8 (3, H, W), of the size to be fast at.
        treatment: how they run.

    Raises:
        ValueError: a file that cannot be read, or nothing to compare with.
    """
    if path.suffix in EXPORTED:
        if treatment.runtime != "auto" or treatment.size:
            raise ValueError(f"{path}: an exported detector brings its own runtime and size")
        if dense == "":
            raise ValueError(f"{path}: an exported detector does not tell what it came from: --compare DENSE_WEIGHTS")
        detectors = [DemoDetector(path.stem, load_exported(path))]
        return [_dense(dense, frame, treatment), *detectors] if dense else detectors
    weights = read_weights(path)
    detector = detector_from_weights(weights)
    ours = DemoDetector("compressed" if weights.is_compressed else "dense", _optimized(detector, frame, treatment))
    if dense is None:
        return [ours]
    source = dense or weights.metadata.get("dense_weights")
    if not weights.is_compressed:
        raise ValueError(f"{path} is dense: --compare takes a compressed detector")
    if dense or (isinstance(source, str) and Path(source).exists()):
        return [_dense(str(source), frame, treatment), ours]
    log.warning("the dense detector that %s came from is not there: random weights show its speed alone", path)
    random = _optimized(_dense_like(detector), frame, treatment)
    return [DemoDetector("dense, random weights", random, is_trained=False), ours]


def _dense(path: str, frame: Tensor, treatment: Treatment) -> DemoDetector:
    weights = read_weights(path)
    if weights.is_compressed:
        raise ValueError(f"{path} is compressed: --compare takes a dense detector")
    return DemoDetector("dense", _optimized(detector_from_weights(weights), frame, treatment))


def _optimized(detector: Any, frame: Tensor, treatment: Treatment) -> Any:
    if treatment.size:
        ratio = detector.transform.max_size / detector.transform.min_size[-1]
        detector.transform.min_size = (treatment.size,)
        detector.transform.max_size = round(treatment.size * ratio)
    return optimize(detector.to(treatment.device).eval(), [frame / 255], treatment.runtime)


def _dense_like(compressed: Any) -> Any:
    """A dense detector of the structure that a compressed one had before, with random weights."""
    spec = DetectorSpec.from_state_dict(compressed.state_dict(), settings_of(compressed))
    torch.manual_seed(0)
    detector: Any = build_from_spec(spec.uncompressed(spec.body.widths["layer4"] / LAST_WIDTH))
    detector.categories, detector.category_ids = compressed.categories, compressed.category_ids
    return detector
