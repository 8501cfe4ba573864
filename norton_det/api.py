"""Offers the public functions, which join models, compression and deployment without any configuration."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from norton_det.analysis.complexity import count_detector
from norton_det.analysis.latency import detector_latency
from norton_det.compression.building import build_network
from norton_det.compression.compress import CompressionReport
from norton_det.compression.plan import PlanLike
from norton_det.compression.recover import compress_and_recover, recover
from norton_det.compression.saliency import Criterion
from norton_det.compression.search.plan_search import search_plan
from norton_det.data.catalog import Categories
from norton_det.deploy.optimize import TorchDetector, optimize
from norton_det.deploy.parity import Parity, parity
from norton_det.deploy.runtimes import EXPORTED, load_exported
from norton_det.deploy.throughput import detect_stream, for_many
from norton_det.deploy.writing import FilePrecision, export_file
from norton_det.evaluation.agreement import SCORE, Agreement, Findings, agreement_of
from norton_det.evaluation.consensus import VIEWS, Shown, consensus
from norton_det.evaluation.inference import find
from norton_det.models.categories import categories_of, keypoints_of
from norton_det.models.device import device_of
from norton_det.models.modes import evaluating
from norton_det.models.persistence import detector_from_weights, resnet_from_weights, save_weights
from norton_det.models.structure import named_structure
from norton_det.models.weights import read_weights

log = logging.getLogger(__name__)
__all__ = [
    "agreement",
    "build_detector",
    "compress",
    "count_detector",
    "detect_stream",
    "detector_latency",
    "export",
    "load_detector",
    "load_resnet",
    "optimize",
    "parity",
    "recover",
    "save",
    "search_plan",
]


def compress(
    model: nn.Module,
    plan: PlanLike,
    rank: int | None = None,
    criterion: Criterion = "pabs",
    images: Sequence[Tensor] = (),
    share: float = 1.0,
) -> tuple[nn.Module, CompressionReport]:
    """Return a compressed copy of a ResNet or of a detector on one, trained or not, and the report.

    `plan` is a preset's name (`norton-43` to `norton-77`, for a whole detector with `-all`), the paper's notation, a
    JSON file, a `CompressionPlan`, or `none`; `rank` replaces the rank of every decomposed layer of the body. With
    `images`, float RGB (3, H, W) in 0 to 1, a few hundred without labels, the model is restored on them as `recover`
    does, the dense one as its teacher; a detector may learn images of a `share` of its own size. Raises ValueError
    for a plan or a model that does not fit, and for a share without images.

    Source: Pham, Zniyed, Nguyen, NORTON, IEEE TNNLS 2024.

    Examples:
        >>> from torchvision.models import resnet50
        >>> compressed, report = compress(resnet50(), plan="norton-77")
        >>> sum(p.numel() for p in compressed.parameters())
        5885736
    """
    return compress_and_recover(model, plan, images, criterion, rank=rank, share=share)


def build_detector(
    kind: str, body: str = "resnet50", plan: PlanLike | None = None, num_classes: int = 91, width: float = 1.0
) -> Any:
    """Build a detector with random weights; it is dense unless a plan is given.

    `kind` is `faster_rcnn`, `mask_rcnn`, `keypoint_rcnn`, `faster_rcnn_v2`, `mask_rcnn_v2`, `retinanet`,
    `retinanet_v2` or `fcos`, `body` one of torchvision's ResNets by name, `num_classes` counts the background, and
    `width` multiplies the channels of the body. Raises ValueError for an unknown kind, body or plan.

    Examples:
        >>> sum(p.numel() for p in build_detector("faster_rcnn", plan="norton-77").parameters())
        22012182
    """
    return build_network(named_structure(kind, body, num_classes), plan, width)


def load_resnet(path: str | Path, strict: bool = True) -> ResNet:
    """Load a ResNet classifier from a weights file: our own, torchvision's, or a published NORTON checkpoint.

    Its structure is read from the file. With `strict` a file that lacks tensors is refused. Raises ValueError naming
    the file and what does not fit.
    """
    return resnet_from_weights(read_weights(path), strict)


def load_detector(
    path: str | Path,
    norm_eps: float | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    *,
    d2_config: str | Path | None = None,
    categories: str | Path | None = None,
) -> Any:
    """Load a detector from a weights file, ours, torchvision's, Detectron2's or a published checkpoint, or from an
    exported file.

    Its structure is read from the file. It carries `.categories`, names by label, and `.category_ids`. `norm_eps` is
    the eps of frozen BatchNorm where the file does not say it. An exported file (.onnx, .xml) gives a detector for
    inference only; an .xml file may run in bfloat16. `d2_config` is the YAML file by which Detectron2 made the
    detector; without it its model zoo's settings are taken. `categories` is a JSON file with the names of what the
    detector finds, a list or data in COCO's format. Raises ValueError naming the file and what does not fit.
    """
    if Path(path).suffix in EXPORTED:
        if norm_eps is not None or d2_config or categories:
            raise ValueError(f"{path}: an exported file says everything itself: no norm_eps, d2_config or categories")
        return load_exported(path, precision)
    if precision != "float32":
        raise ValueError(f"{path}: only an .xml file runs in {precision}; `optimize` makes weights do so")
    return detector_from_weights(read_weights(path, d2_config, categories), norm_eps=norm_eps)


def save(model: nn.Module, path: str | Path) -> None:
    """Write a detector or a classifier to a file that `load_detector`, `load_resnet` give back with the same bits.

    The file is written whole or not at all. Raises ValueError naming a module that a file cannot hold.
    """
    save_weights(Path(path), model)


def export(
    detector: nn.Module,
    path: str | Path,
    images: Sequence[Tensor],
    precision: FilePrecision = "float32",
    frame: tuple[int, int] | None = None,
) -> Parity:
    """Write a detector to an .onnx or .xml (OpenVINO) file, which `load_detector` gives back for inference.

    `images` are float RGB (3, H, W) in 0 to 1, at least one: the file is fast at the size of the first one and must
    detect what torch does on the first eight, or is not written; int8, for .xml, takes its ranges from all of them.
    With a `frame`, a height and a width that the resized images fit in, all tensors of the file have constant shapes.
    Returns how far its detections lie from torch's. Raises ValueError for what cannot be written.
    """
    return export_file(detector, path, images, precision, frame)


def agreement(reference: Any, detector: Any, images: Sequence[Tensor], score: float = SCORE) -> Agreement:
    """Compute how far a detector agrees with a reference, such as the dense one that it was made from.

    It is AP against what the reference is sure of, in percent of the reference's own: the truth is what it finds with
    at least this score, on average, in views of each image. The images have no labels, float RGB (3, H, W) in 0 to 1,
    and neither was fitted or restored on them. Both are detectors in memory, optimised or of an exported file.
    Categories are matched by name; masks or keypoints count where both find them. Raises ValueError for no common
    category, other keypoints, and a reference that finds nothing.
    """
    own, truth = reference_findings(reference, images, score)
    return agreement_of(own, findings_of(detector, images, "detector"), score, truth=truth)


def reference_findings(detector: Any, images: Sequence[Tensor], score: float = SCORE) -> tuple[Findings, Findings]:
    """Return what a detector finds on images, and what it is sure of: the consensus of their views.

    Where these have nothing in common, that is what it finds.
    """
    shown = [Shown(images, view) for view in VIEWS]
    found = [findings_of(detector, view, f"reference, view {number}") for number, view in enumerate(shown, start=1)]
    truth = consensus(found, shown, score)
    if not truth.results:
        log.warning("the reference finds nothing again in a mirrored or smaller image: what it finds is the truth")
    return found[0], truth if truth.results else found[0]


def findings_of(detector: Any, images: Iterable[Tensor], name: str) -> Findings:
    """Return what a detector of any kind finds, in evaluation mode, on the device where it is."""
    network = detector.detector if isinstance(detector, TorchDetector) else detector
    if not isinstance(network, nn.Module):
        categories = Categories(tuple(detector.categories), tuple(detector.category_ids), detector.keypoints)
        return find(for_many(detector), images, categories, torch.device("cpu"), name)
    with evaluating(network):
        return find(for_many(detector), images, network_categories(network), device_of(network), name)


def network_categories(network: nn.Module) -> Categories:
    """Return the categories that a detector's network knows, numbered ones where it names none."""
    names, ids = categories_of(network)
    return Categories(tuple(names), tuple(ids), keypoints_of(network))
