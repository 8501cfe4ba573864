"""Models that are explained side by side: from files and plans, and what is told of them as grid, table and data."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from norton_det.compression.plan import CompressionPlan
from norton_det.compression.recover import compress_and_recover
from norton_det.models.categories import categories_of, class_count
from norton_det.models.norms import unfreeze_batch_norms
from norton_det.models.persistence import model_from_weights
from norton_det.models.weights import Weights, read_weights
from norton_det.report.gradcam import Explanation, Subject, class_names
from norton_det.visualization.heat_grid import HeatRow


def load_explained(weights: Weights) -> tuple[nn.Module, list[str]]:
    """Load a model in evaluation mode, its BatchNorm counted among its parameters, and the names of its classes."""
    model = model_from_weights(weights)
    unfreeze_batch_norms(model)
    if isinstance(model, ResNet):
        return model, class_names(weights.metadata.get("categories"), _count_classes(model))
    return model, categories_of(model)[0]


def load_beside(dense: nn.Module, dense_weights: Weights, path: str) -> nn.Module:
    """Load the model of a file to explain beside the dense one.

    Raises ValueError where it is of another kind, or of other classes; a file need not name its classes, it is enough
    then that they are as many.
    """
    weights = read_weights(path)
    model, _ = load_explained(weights)
    ours, theirs = (file.metadata.get("categories") for file in (weights, dense_weights))
    same_names = ours is None or theirs is None or ours == theirs
    if type(model) is not type(dense) or _count_classes(model) != _count_classes(dense) or not same_names:
        raise ValueError(f"{path}: its kind of model or its classes are not those of --weights")
    return model


def compress_by(
    plans: Sequence[CompressionPlan], dense: nn.Module, images: Sequence[Tensor], device: torch.device
) -> Iterator[nn.Module]:
    """Compress the dense model by each plan, one at a time, restored on the images, where there are any."""
    for plan in plans:
        model, _ = compress_and_recover(dense, plan, images, device=device)
        yield model.eval()


def grid(subjects: Sequence[Subject], explanations: Sequence[Explanation]) -> tuple[list[str], list[HeatRow]]:
    """Turn explanations, the dense model's first, into titles and rows, as `save_heat_grid` takes them."""
    dense, *others = explanations
    titles = [f"{dense.name}\n{dense.parameters / 1e6:.2f} M parameters"]
    for model in others:
        mean = _number(model.mean_similarity)
        titles.append(f"{model.name}\n{_removed(model, dense):.0%} of parameters removed\nmean similarity {mean}")
    rows = []
    for index, subject in enumerate(subjects):
        maps = [model.maps[index] for model in explanations]
        captions = ["", *(f"similarity {_number(model.similarities[index])}" for model in others)]
        captions = [
            text if cam.any() else f"{text} (no evidence)".lstrip() for text, cam in zip(captions, maps, strict=True)
        ]
        rows.append(HeatRow(_described(subject), subject.picture, subject.area, maps, captions))
    return titles, rows


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
                "removed": _removed(model, explanations[0]),
                "similarity": {"mean": model.mean_similarity, "images": list(model.similarities)},
            }
            for model in explanations
        ],
    }


def format_similarities(
    paths: Sequence[Path], subjects: Sequence[Subject], explanations: Sequence[Explanation]
) -> str:
    """Lay out a row an image, a column a compressed model; Pearson's correlation with the dense model's map."""
    dense, *others = explanations
    cells = [["image", "explained", *(model.name for model in others)]]
    for index, (path, subject) in enumerate(zip(paths, subjects, strict=True)):
        cells.append([path.name, _described(subject), *(_number(model.similarities[index]) for model in others)])
    cells.append(["mean", "", *(_number(model.mean_similarity) for model in others)])
    cells.append(["parameters removed", "", *(f"{_removed(model, dense):.1%}" for model in others)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for file, explained, *numbers in cells:
        texts = [f"{file:{widths[0]}}", f"{explained:{widths[1]}}"]
        texts += [f"{number:>{width}}" for number, width in zip(numbers, widths[2:], strict=True)]
        lines.append("  ".join(texts).rstrip())
    return "\n".join(lines)


def _count_classes(model: nn.Module) -> int:
    return model.fc.out_features if isinstance(model, ResNet) else class_count(model)


def _described(subject: Subject) -> str:
    return f"{subject.name} {subject.score:.0%}"


def _removed(model: Explanation, dense: Explanation) -> float:
    """The share of the dense model's parameters that a model lacks."""
    return 1 - model.parameters / dense.parameters


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
