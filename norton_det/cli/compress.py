"""Compress trained weights, a ResNet-50's or a detector's, by a plan."""

import argparse
import logging
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from norton_det.compression.compress import CompressionReport, compress
from norton_det.compression.plan import load_plan
from norton_det.compression.saliency import Criterion
from norton_det.engine.checkpoint import save_weights
from norton_det.files import write_json
from norton_det.models.weights import detector_from_weights, read_weights, resnet50_from_weights

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--weights", required=True, help="a dense ResNet-50 or detector: torchvision's file or ours")
    parser.add_argument("--plan", required=True, help="a preset (norton-77), a JSON file, or the paper's notation")
    parser.add_argument("--rank", type=int, help="replace the rank of every decomposed layer")
    parser.add_argument("--criterion", default="pabs", choices=get_args(Criterion), help="how filters are compared")
    parser.add_argument("--output", required=True, type=Path, help="where the compressed weights go (.pth)")


def run(args: argparse.Namespace) -> None:
    """Write the compressed weights and, beside them, the report as JSON."""
    plan = load_plan(args.plan, args.rank)
    if args.output.suffix == ".json":
        raise ValueError(f"--output {args.output}: the report goes to the .json beside it; name a .pth file")
    weights = read_weights(args.weights)
    if weights.is_compressed:
        raise ValueError(f"{args.weights} is compressed already")
    model = detector_from_weights(weights) if weights.is_detector else resnet50_from_weights(weights)
    with tqdm(total=len(plan.ranks), desc="decompose") as bar:
        compressed, report = compress(model, plan, args.criterion, progress=lambda layer: bar.update())
    dense_source = str(Path(args.weights).resolve())
    save_weights(args.output, compressed, plan=plan.to_dict(), kept=report.kept, dense_weights=dense_source)
    write_json(args.output.with_suffix(".json"), report.to_dict())
    print(format_report(report))
    print(f"weights: {args.output}\nreport:  {args.output.with_suffix('.json')}")


def format_report(report: CompressionReport) -> str:
    """A table, a row a convolution."""
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
    rows.append(f"convolutions of the body: {before:,} -> {after:,} parameters ({after / before:.1%})")
    return "\n".join(rows)
