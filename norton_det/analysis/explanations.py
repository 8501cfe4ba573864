"""Explains models side by side: their class activation maps, how alike those are, and a table and JSON of both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet50_Weights

from norton_det.analysis.gradcam import Subject, choose_subject, grad_cam, similarity
from norton_det.models.categories import categories_of, class_count
from norton_det.models.norms import unfreeze_batch_norms
from norton_det.models.parts import regions
from norton_det.models.persistence import model_from_weights
from norton_det.models.smaller_images import size_settings
from norton_det.models.weights import Weights, read_weights


@dataclass(frozen=True)
class Explanation:
    """Holds a model's maps (h, w), one for each subject, and how alike each is to the reference model's."""

    name: str
    parameters: int
    maps: tuple[Tensor, ...]
    similarities: tuple[float, ...]

    @property
    def mean_similarity(self) -> float:
        """Return the mean over the subjects that have a similarity."""
        return float(torch.tensor(self.similarities, dtype=torch.float64).nanmean())

    def removed(self, dense: "Explanation") -> float:
        """Return the share of the dense model's parameters that this one lacks."""
        return 1 - self.parameters / dense.parameters


def load_explained(weights: Weights) -> tuple[nn.Module, list[str]]:
    """Load a model in evaluation mode, its BatchNorm counted among its parameters, and the names of its classes."""
    model = model_from_weights(weights)
    unfreeze_batch_norms(model)
    if isinstance(model, ResNet):
        return model, class_names(weights.metadata.get("categories"), _count_classes(model))
    return model, categories_of(model)[0]


def load_beside(dense: nn.Module, dense_weights: Weights, path: str) -> nn.Module:
    """Load the model of a file to explain beside the dense one.

    Raises ValueError where it is of another kind or has other classes. A file need not name its classes; then their
    number must be the same.
    """
    weights = read_weights(path)
    model, _ = load_explained(weights)
    ours, theirs = (file.metadata.get("categories") for file in (weights, dense_weights))
    same_names = ours is None or theirs is None or ours == theirs
    if type(model) is not type(dense) or _count_classes(model) != _count_classes(dense) or not same_names:
        raise ValueError(f"{path}: its kind of model or its classes are not those of --weights")
    is_one_stage = not isinstance(model, ResNet) and not regions(model)
    if is_one_stage and size_settings(model, 1) != size_settings(dense, 1):
        raise ValueError(
            f"{path}: its images have another size than those of --weights, and their places do not match"
        )
    return model


def class_names(described: object, count: int) -> list[str]:
    """Name a classifier's classes: as its file does, else as ImageNet does, if their number fits; else by numbers."""
    for names in (described, ResNet50_Weights.IMAGENET1K_V1.meta["categories"]):
        if isinstance(names, list) and len(names) == count:
            return names
    return [f"class {label}" for label in range(count)]


def choose_subjects(
    dense: nn.Module, paths: Sequence[Path], images: Sequence[Tensor], categories: Sequence[str], detection: int
) -> list[Subject]:
    """Choose what is explained on each image. Raises ValueError naming one that has no such detection."""
    subjects = []
    for path, image in zip(paths, images, strict=True):
        try:
            subjects.append(choose_subject(dense, image, categories, detection))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return subjects


def explain(
    name: str,
    model: nn.Module,
    images: Sequence[Tensor],
    subjects: Sequence[Subject],
    reference: Explanation | None = None,
) -> Explanation:
    """Compare the maps of a model, in evaluation mode, with those of a reference (None: its own).

    Raises ValueError as `grad_cam` does.
    """
    maps = tuple(grad_cam(model, image, subject) for image, subject in zip(images, subjects, strict=True))
    similarities = tuple(map(similarity, maps, reference.maps if reference else maps))
    return Explanation(name, sum(p.numel() for p in model.parameters()), maps, similarities)


def to_dict(
    weights: str, paths: Sequence[Path], subjects: Sequence[Subject], explanations: Sequence[Explanation]
) -> dict[str, object]:
    """Turn the results into plain types, ready for JSON."""
    return {
        "weights": weights,
        "images": [
            {"file": str(path), "label": s.label, "name": s.name, "score": s.score, "area": list(s.area)}
            for path, s in zip(paths, subjects, strict=True)
        ],
        "models": [
            {
                "name": model.name,
                "parameters": model.parameters,
                "removed": model.removed(explanations[0]),
                "similarity": {"mean": model.mean_similarity, "images": list(model.similarities)},
            }
            for model in explanations
        ],
    }


def format_similarities(
    paths: Sequence[Path], subjects: Sequence[Subject], explanations: Sequence[Explanation]
) -> str:
    """Lay out Pearson's correlations with the dense model's maps: a row an image, a column a compressed model."""
    dense, *others = explanations
    cells = [["image", "explained", *(model.name for model in others)]]
    for index, (path, subject) in enumerate(zip(paths, subjects, strict=True)):
        cells.append([path.name, subject.title, *(format_similarity(model.similarities[index]) for model in others)])
    cells.append(["mean", "", *(format_similarity(model.mean_similarity) for model in others)])
    cells.append(["parameters removed", "", *(f"{model.removed(dense):.1%}" for model in others)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for file, explained, *numbers in cells:
        texts = [f"{file:{widths[0]}}", f"{explained:{widths[1]}}"]
        texts += [f"{number:>{width}}" for number, width in zip(numbers, widths[2:], strict=True)]
        lines.append("  ".join(texts).rstrip())
    return "\n".join(lines)


def format_similarity(value: float) -> str:
    """Return two decimals, or "-" for NaN."""
    return "-" if math.isnan(value) else f"{value:.2f}"


def _count_classes(model: nn.Module) -> int:
    return model.fc.out_features if isinstance(model, ResNet) else class_count(model)
