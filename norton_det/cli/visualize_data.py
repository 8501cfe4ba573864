"""Draw training images with their annotations after augmentation, as the first steps of training see them."""

import argparse
import logging
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_dtype
from tqdm import tqdm

from norton_det.builders.datasets import build_training_dataset
from norton_det.builders.resolve import resolve_categories, resolve_dataset
from norton_det.builders.training import build_batches
from norton_det.cli.options import require_at_least
from norton_det.config import Config, load_config
from norton_det.data.catalog import Categories, DatasetFiles
from norton_det.data.images import write_png
from norton_det.visualization.draw import draw_targets

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--count", type=int, default=16, help="how many images")
    parser.add_argument("--output", required=True, type=Path, help="a folder for the pictures")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the configuration")


def run(args: argparse.Namespace) -> None:
    """Write a picture of each image, numbered in the order of training."""
    require_at_least(args, count=1)
    config = load_config(args.config, [*args.overrides, "data.workers=0"])  # workers would read far ahead
    files = resolve_dataset(config, "train")
    categories = resolve_categories(config, files)
    samples = islice(training_samples(config, files, categories), args.count)
    for number, (image, target) in enumerate(tqdm(samples, desc="draw", total=args.count), start=1):
        pixels = to_dtype(image, torch.uint8, scale=True)
        picture = draw_targets(pixels, target, categories.names, categories.keypoints)
        write_png(args.output / f"{number:04}_image_{target['image_id']}.png", picture)
    log.info("pictures: %s", args.output)


def training_samples(
    config: Config, files: DatasetFiles, categories: Categories
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield without end the images (3, H, W) float32 and targets that a training run takes in."""
    batches = build_batches(config, build_training_dataset(config, files, categories), start=0)
    return chain.from_iterable(zip(images, targets, strict=True) for images, targets in batches)
