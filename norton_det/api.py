"""The public face: joins models and compression without any configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from norton_det.compression.compress import CompressionReport
from norton_det.compression.plan import CompressionPlan, load_plan
from norton_det.compression.recover import compress_and_recover
from norton_det.compression.saliency import Criterion
from norton_det.deploy.runtimes import EXPORTED, ExportedDetector, load_exported
from norton_det.models.detectors import DetectorKind, DetectorSpec, build_from_spec
from norton_det.models.resnet import ResNetSpec
from norton_det.models.weights import (
    default_categories,
    detector_from_weights,
    read_weights,
    resnet50_from_weights,
)

Plan = str | Path | Mapping[str, Any] | CompressionPlan


def compress(
    model: nn.Module,
    plan: Plan,
    rank: int | None = None,
    criterion: Criterion = "pabs",
    images: Sequence[Tensor] = (),
) -> tuple[nn.Module, CompressionReport]:
    """A compressed copy of a torchvision ResNet-50 or of an R-CNN on one, trained or not, and the report.

    `plan` is a preset's name (`norton-43` to `norton-77`, for a whole detector with `-all`), the paper's notation, a
    JSON file, or a `CompressionPlan`; `rank` replaces the rank of every decomposed layer of the body. With `images`,
    float RGB (3, H, W) in 0 to 1, a few hundred without labels, the model is restored on them part by part, the dense
    one as its teacher. Raises ValueError for a plan or a model that does not fit.

    Source: Pham, Zniyed, Nguyen, NORTON, IEEE TNNLS 2024.

    Examples:
        >>> from torchvision.models import resnet50
        >>> compressed, report = compress(resnet50(), plan="norton-77")
        >>> sum(p.numel() for p in compressed.parameters())
        5885736
    """
    return compress_and_recover(model, load_plan(plan, rank), images, criterion)


def load_resnet50(path: str | Path, strict: bool = True) -> ResNet:
    """A ResNet-50 classifier from a weights file: our own, torchvision's, or a published NORTON checkpoint.

    Widths and ranks are read from the tensor shapes. With `strict` a file that lacks tensors is refused. Raises
    ValueError naming the file and what does not fit.
    """
    return resnet50_from_weights(read_weights(path), strict)


def build_detector(kind: DetectorKind, plan: Plan | None = None, num_classes: int = 91) -> GeneralizedRCNN:
    """A detector with random weights, `faster_rcnn`, `mask_rcnn` or `keypoint_rcnn`; without a plan, dense.

    `num_classes` counts the background. Raises ValueError for an unknown kind or plan.

    Examples:
        >>> sum(p.numel() for p in build_detector("faster_rcnn", plan="norton-77").parameters())
        22012182
    """
    chosen = CompressionPlan() if plan is None else load_plan(plan)
    body = chosen.apply(ResNetSpec.dense())
    detector = build_from_spec(DetectorSpec(kind, num_classes, body, part_ranks=chosen.parts))
    detector.categories, detector.category_ids = default_categories(num_classes)
    return detector


def load_detector(path: str | Path) -> GeneralizedRCNN | ExportedDetector:
    """A detector from a weights file, our own, torchvision's, or a published NORTON checkpoint, or an exported file.

    Its structure is read from the file. It carries `.categories`, names by label, and `.category_ids`. An exported
    file (.onnx, .xml) gives a detector for inference only. Raises ValueError naming the file and what does not fit.
    """
    if Path(path).suffix in EXPORTED:
        return load_exported(path)
    return detector_from_weights(read_weights(path))
