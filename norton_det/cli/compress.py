"""Compress trained weights, a ResNet-50's or a detector's, by a plan."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from torch import Tensor
from tqdm import tqdm

from norton_det.cli.options import require_at_least
from norton_det.compression.compress import CompressionReport
from norton_det.compression.plan import load_plan
from norton_det.compression.recover import STEPS, compress_and_recover
from norton_det.compression.saliency import Criterion
from norton_det.data.catalog import open_images
from norton_det.engine.checkpoint import save_weights
from norton_det.engine.distributed import find_device
from norton_det.files import write_json
from norton_det.models.weights import model_from_weights, read_dense_weights

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--weights", required=True, help="a dense ResNet-50 or detector: torchvision's file or ours")
    parser.add_argument("--plan", required=True, help="a preset (norton-77), a JSON file, or the paper's notation")
    parser.add_argument("--rank", type=int, help="replace the rank of every decomposed layer")
    parser.add_argument("--criterion", default="pabs", choices=get_args(Criterion), help="how filters are compared")
    parser.add_argument("--images", help="restore on images without labels: a folder, or a dataset's name")
    parser.add_argument("--image-count", type=int, default=200, help="how many of them")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="gradient steps of each part on them: more restore more"
    )
    parser.add_argument("--output", required=True, type=Path, help="where the compressed weights go (.pth)")


def run(args: argparse.Namespace) -> None:
    """Write the compressed weights and, beside them, the report as JSON."""
    plan = load_plan(args.plan, args.rank)
    if args.output.suffix == ".json":
        raise ValueError(f"--output {args.output}: the report goes to the .json beside it; name a .pth file")
    require_at_least(args, steps=0, image_count=2)
    weights = read_dense_weights(args.weights)
    images: Sequence[Tensor] = open_images(args.images, args.image_count) if args.images else ()
    unfinished = args.output.with_suffix(".recovery.pth")
    with tqdm(total=len(plan.ranks), desc="decompose") as bar:
        compressed, report = compress_and_recover(
            model_from_weights(weights),
            plan,
            images,
            args.criterion,
            steps=args.steps,
            device=find_device("auto"),
            progress=lambda layer: bar.update(),
            checkpoint=unfinished,
        )
    dense_source = str(Path(args.weights).resolve())
    save_weights(args.output, compressed, plan=plan.to_dict(), kept=report.kept, dense_weights=dense_source)
    write_json(args.output.with_suffix(".json"), report.to_dict())
    if images:
        unfinished.unlink(missing_ok=True)
    print(format_report(report))
    print(f"weights: {args.output}\nreport:  {args.output.with_suffix('.json')}")


def format_report(report: CompressionReport) -> str:
    """A table, a row a layer; and, where the model was restored, a row a part."""
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
