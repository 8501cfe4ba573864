"""Draw class activation maps (Grad-CAM) of dense beside compressed models, and say how similar they are."""

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from torch import Tensor, nn
from tqdm import tqdm

from norton_det.analysis.explanations import (
    choose_subjects,
    explain,
    format_similarities,
    load_beside,
    load_explained,
    to_dict,
)
from norton_det.cli.options import require_at_least
from norton_det.compression.plan import CompressionPlan, load_plan
from norton_det.compression.recover import compress_and_recover
from norton_det.data.catalog import open_images
from norton_det.data.images import ImageFiles
from norton_det.engine.distributed import find_device
from norton_det.files import write_json
from norton_det.models.channels import read_body
from norton_det.models.weights import read_dense_weights, read_weights, weights_name
from norton_det.visualization.heat_grid import explanation_grid, save_heat_grid

LESS_MEMORY = "give it smaller --images, or fewer (--image-count, --restore-count)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--weights", help="a trained dense ResNet or detector: torchvision's file or ours")
    parser.add_argument(
        "--plans", nargs="+", default=[], metavar="PLAN", help="compress the weights by each of these"
    )
    parser.add_argument(
        "--restore", metavar="D", help="restore the models of --plans on a folder or dataset of images"
    )
    parser.add_argument("--restore-count", type=int, default=200, help="how many images to restore on")
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
    parser.add_argument("--detection", type=int, default=1, help="for a detector: explain its N-th best detection")
    parser.add_argument("--output", required=True, type=Path, help="where the grid goes (.png)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")


def run(args: argparse.Namespace) -> None:
    """Write the grid and, if asked for, the JSON; print the table."""
    if args.weights is None:
        raise ValueError(
            "--weights is missing: it takes the file of a trained dense model, a ResNet classifier's such as"
            " torchvision's resnet50-0676ba61.pth or a detector's model_final.pth"
        )
    if args.output.suffix != ".png":
        raise ValueError(f"--output {args.output}: the grid is a .png file")
    require_at_least(args, detection=1, image_count=1, restore_count=1)
    images = open_each(args.images, args.image_count)
    restored_on: Sequence[Tensor] = open_images(args.restore, args.restore_count) if args.restore else ()
    weights = (read_dense_weights if args.plans else read_weights)(args.weights)
    dense, categories = load_explained(weights)
    plans = [load_plan(plan, read_body(dense)) for plan in args.plans]
    files = [load_beside(dense, weights, file) for file in args.compressed]
    subjects = choose_subjects(dense, images.paths, images, categories, args.detection)
    explanations = [explain("dense", dense, images, subjects)]
    compressed = chain(compress_by(plans, dense, restored_on), files)
    names = [*map(_plan_name, args.plans), *map(weights_name, args.compressed)]
    for name, model in zip(names, tqdm(compressed, desc="compress, explain", total=len(names)), strict=True):
        explanations.append(explain(name, model, images, subjects, explanations[0]))
    save_heat_grid(args.output, *explanation_grid(subjects, explanations))
    if args.json:
        write_json(args.json, to_dict(args.weights, images.paths, subjects, explanations), indent=2)
    print(format_similarities(images.paths, subjects, explanations))
    print(f"grid: {args.output}")


def open_each(places: Sequence[str], count: int) -> ImageFiles:
    """Open the image files, and `count` images of each folder or dataset. Raises what `open_images` raises."""
    paths = [[Path(place)] if Path(place).is_file() else open_images(place, count).paths for place in places]
    return ImageFiles([*chain.from_iterable(paths)])


def compress_by(plans: Sequence[CompressionPlan], dense: nn.Module, images: Sequence[Tensor]) -> Iterator[nn.Module]:
    """Compress the dense model by each plan, one at a time, and restore it on the images, if there are any."""
    for plan in plans:
        model, _ = compress_and_recover(dense, plan, images, device=find_device("auto"))
        yield model.eval()


def _plan_name(plan: str) -> str:
    return Path(plan).stem if plan.endswith(".json") else plan
