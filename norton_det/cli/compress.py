"""Compress trained weights, a ResNet-50's or a detector's, by a plan."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from torch import Tensor, nn

from norton_det.cli.options import add_weights, require_at_least, require_positive, share_of_size, weights_words
from norton_det.compression.compress import CompressionReport
from norton_det.compression.recover import STEPS, compress_and_recover
from norton_det.compression.saliency import Criterion
from norton_det.data.catalog import open_images
from norton_det.engine.distributed import find_device
from norton_det.engine.folder import sole_run
from norton_det.files import write_json
from norton_det.models.persistence import model_from_weights, origin_of, save_weights, with_origin
from norton_det.models.weights import read_dense_weights

log = logging.getLogger(__name__)
LESS_MEMORY = "give it smaller --images, or fewer (--image-count)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_weights(parser, "a dense ResNet or detector")
    parser.add_argument(
        "--plan", required=True, help="a preset (norton-77), a JSON file, the paper's notation, or none (with --size)"
    )
    parser.add_argument(
        "--size", type=int, help="make a detector for smaller images, whose shorter side has so many pixels"
    )
    parser.add_argument("--rank", type=int, help="replace the rank of every decomposed layer")
    parser.add_argument("--criterion", default="pabs", choices=get_args(Criterion), help="how filters are compared")
    parser.add_argument("--images", help="restore on images without labels: a folder, or a dataset's name")
    parser.add_argument("--image-count", type=int, default=200, help="how many of the images to use")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=int, default=STEPS, help="gradient steps of the whole detector: more steps restore more"
    )
    length.add_argument("--minutes", type=float, help="restore for this long instead of a number of steps")
    parser.add_argument("--seed", type=int, default=0, help="decides which images and crops are seen when")
    parser.add_argument(
        "--norm-eps", type=float, help="the eps of a detector's frozen BatchNorm, if its file does not give it"
    )
    parser.add_argument("--output", required=True, type=Path, help="where the compressed weights go (.pth)")


def run(args: argparse.Namespace) -> None:
    """Write the compressed weights and, beside them, the report as JSON."""
    if args.output.suffix == ".json":
        raise ValueError(f"--output {args.output}: the report goes to the .json beside it; name a .pth file")
    require_at_least(args, steps=0, image_count=2, size=1)
    require_positive(args, "minutes")
    dense = model_from_weights(read_dense_weights(*weights_words(args)), norm_eps=args.norm_eps)
    images: Sequence[Tensor] = open_images(args.images, args.image_count) if args.images else ()
    with sole_run(args.output.with_suffix(".lock"), f"--output {args.output}"):
        write_compressed(args, dense, images)


def write_compressed(args: argparse.Namespace, dense: nn.Module, images: Sequence[Tensor]) -> None:
    """Compress and restore a model, and keep its finished parts beside the output until all is done."""
    unfinished = args.output.with_suffix(".recovery.pth")
    compressed, report = compress_and_recover(
        dense,
        args.plan,
        images,
        args.criterion,
        rank=args.rank,
        steps=args.steps,
        minutes=args.minutes,
        seed=args.seed,
        share=share_of_size(dense, args.size) if args.size else 1.0,
        device=find_device("auto"),
        checkpoint=unfinished,
    )
    origin = replace(origin_of(compressed), dense_weights=str(Path(args.weights).resolve()))
    save_weights(args.output, with_origin(compressed, origin))
    write_json(args.output.with_suffix(".json"), report.to_dict())
    if images:
        unfinished.unlink(missing_ok=True)
    print(format_report(report))
    print(f"weights: {args.output}\nreport:  {args.output.with_suffix('.json')}")


def format_report(report: CompressionReport) -> str:
    """Format a table with a row for each layer and, if the model was restored, one with a row for each part."""
    rows = [f"{'layer':24}{'filters':>14}{'inputs':>14}{'rank':>6}{'NMSE':>8}{'parameters':>24}"]
    for layer in report.layers:
        filters = f"{layer.shape[0]} -> {layer.compressed_shape[0]}"
        inputs = f"{layer.shape[1]} -> {layer.compressed_shape[1]}"
        rank = "-" if layer.rank is None else str(layer.rank)
        nmse = "-" if layer.nmse is None else f"{layer.nmse:.3f}"
        parameters = f"{layer.parameters:,} -> {layer.compressed_parameters:,}"
        rows.append(f"{layer.name:24}{filters:>14}{inputs:>14}{rank:>6}{nmse:>8}{parameters:>24}")
    before = sum(layer.parameters for layer in report.layers)
    after = sum(layer.compressed_parameters for layer in report.layers)
    rows.append(f"these layers: {before:,} -> {after:,} parameters ({after / before:.1%})")
    if report.recovery:
        rows.append(f"\n{'part, restored':24}{'error before':>14}{'after':>14}")
        rows += [f"{part.name:24}{part.before:>14.3f}{part.after:>14.3f}" for part in report.recovery]
    return "\n".join(rows)
