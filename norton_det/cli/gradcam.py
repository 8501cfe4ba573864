"""Draw class activation maps (Grad-CAM) of dense weights beside those of compressed ones; tell how alike they are."""

import argparse
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from torch import Tensor
from torchvision.models import ResNet
from tqdm import tqdm

from norton_det.cli.options import require_at_least
from norton_det.compression.plan import CompressionPlan, load_plan
from norton_det.compression.recover import compress_and_recover
from norton_det.data.catalog import open_images
from norton_det.data.images import ImageFiles
from norton_det.engine.distributed import find_device
from norton_det.files import write_json
from norton_det.models.norms import unfreeze_batch_norms
from norton_det.models.weights import Weights, model_from_weights, read_dense_weights, read_weights, weights_name
from norton_det.report.gradcam import Explanation, Model, Subject, choose_subject, class_names, explain
from norton_det.visualization.heat_grid import HeatRow, save_heat_grid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--weights", help="a trained dense ResNet-50 or detector: torchvision's file or ours")
    parser.add_argument(
        "--plans", nargs="+", default=[], metavar="PLAN", help="compress the weights by each of these"
    )
    parser.add_argument("--restore", metavar="D", help="restore what --plans give on a folder or dataset of images")
    parser.add_argument("--restore-count", type=int, default=200, help="how many of them")
    parser.add_argument(
        "--compressed",
        nargs="+",
        default=[],
        metavar="FILE",
        help="weights files of the same classes, compressed or fine-tuned",
    )
    parser.add_argument(
        "--images", nargs="+", required=True, metavar="I", help="image files, folders, datasets' names"
    )
    parser.add_argument("--image-count", type=int, default=4, help="images of each folder or dataset")
    parser.add_argument("--detection", type=int, default=1, help="of a detector: explain its N-th best detection")
    parser.add_argument("--output", required=True, type=Path, help="where the grid goes (.png)")
    parser.add_argument("--json", type=Path, help="write the numbers there")


def run(args: argparse.Namespace) -> None:
    """Write the grid and, where it is wanted, the JSON; print the table."""
    if args.weights is None:
        raise ValueError(
            "--weights is missing: it takes the file of a trained dense model, a ResNet-50 classifier's such as"
            " torchvision's resnet50-0676ba61.pth or a detector's model_final.pth"
        )
    if args.output.suffix != ".png":
        raise ValueError(f"--output {args.output}: the grid is a .png file")
    require_at_least(args, detection=1, image_count=1, restore_count=1)
    plans = [load_plan(plan) for plan in args.plans]
    images = open_each(args.images, args.image_count)
    restored_on: Sequence[Tensor] = open_images(args.restore, args.restore_count) if args.restore else ()
    weights = (read_dense_weights if plans else read_weights)(args.weights)
    dense, categories = load(weights)
    files = [load_beside(dense, weights, file) for file in args.compressed]
    subjects = choose_subjects(dense, images, categories, args.detection)
    explanations = [explain("dense", dense, images, subjects)]
    compressed = chain(compress_by(plans, dense, restored_on), files)
    names = [*map(_plan_name, args.plans), *map(weights_name, args.compressed)]
    for name, model in zip(names, tqdm(compressed, desc="compress, explain", total=len(names)), strict=True):
        explanations.append(explain(name, model, images, subjects, explanations[0]))
    save_heat_grid(args.output, *grid(subjects, explanations))
    if args.json:
        write_json(args.json, to_dict(args.weights, images.paths, subjects, explanations), indent=2)
    print(format_similarities(images.paths, subjects, explanations))
    print(f"grid: {args.output}")


def open_each(places: Sequence[str], count: int) -> ImageFiles:
    """The image files, and the first `count` of each folder or dataset. Raises as `open_images`."""
    paths = [[Path(place)] if Path(place).is_file() else open_images(place, count).paths for place in places]
    return ImageFiles([*chain.from_iterable(paths)])


def load(weights: Weights) -> tuple[Model, list[str]]:
    """A model in evaluation mode, its BatchNorm counted among its parameters, and the names of its classes."""
    model = model_from_weights(weights).eval()
    unfreeze_batch_norms(model)
    if isinstance(model, ResNet):
        return model, class_names(weights.metadata.get("categories"), model.fc.out_features)
    return model, model.categories


def load_beside(dense: Model, dense_weights: Weights, path: str) -> Model:
    """The model of a file. Raises ValueError where it is of another kind than the dense one, or of other classes.

    A classifier's file need not name its classes; it is enough then that they are as many.
    """
    weights = read_weights(path)
    model, _ = load(weights)
    ours, theirs = (file.metadata.get("categories") for file in (weights, dense_weights))
    same_names = ours is None or theirs is None or ours == theirs
    if type(model) is not type(dense) or _class_count(model) != _class_count(dense) or not same_names:
        raise ValueError(f"{path}: its kind of model or its classes are not those of --weights")
    return model


def compress_by(plans: Sequence[CompressionPlan], dense: Model, images: Sequence[Tensor]) -> Iterator[Model]:
    """The dense model by each plan, one at a time, restored on the images, where there are any."""
    for plan in plans:
        model, _ = compress_and_recover(dense, plan, images, device=find_device("auto"))
        assert isinstance(model, Model)
        yield model.eval()


def choose_subjects(dense: Model, images: ImageFiles, categories: Sequence[str], detection: int) -> list[Subject]:
    """What is explained on each image. Raises ValueError naming one that has no such detection."""
    subjects = []
    for path, image in zip(images.paths, images, strict=True):
        try:
            subjects.append(choose_subject(dense, image, categories, detection))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return subjects


def grid(subjects: Sequence[Subject], explanations: Sequence[Explanation]) -> tuple[list[str], list[HeatRow]]:
    """Titles and rows, as `save_heat_grid` takes them."""
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
    """The results as plain types."""
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
    """A table: a row an image, a column a compressed model; Pearson's correlation with the dense model's map."""
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


def _class_count(model: Model) -> int:
    layer = model.fc if isinstance(model, ResNet) else model.roi_heads.box_predictor.cls_score
    return int(layer.out_features)


def _described(subject: Subject) -> str:
    return f"{subject.name} {subject.score:.0%}"


def _removed(model: Explanation, dense: Explanation) -> float:
    """Share of the dense model's parameters that a model lacks."""
    return 1 - model.parameters / dense.parameters


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _plan_name(plan: str) -> str:
    return Path(plan).stem if plan.endswith(".json") else plan
