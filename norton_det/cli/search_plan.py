"""Find the best compression plan for a budget, from unlabelled images."""

import argparse
from pathlib import Path
from typing import get_args

from norton_det.compression.plan import CompressionPlan
from norton_det.compression.saliency import Criterion
from norton_det.compression.search.budget import Budget, Scope
from norton_det.compression.search.plan_search import SearchReport, search_plan
from norton_det.data.catalog import open_images
from norton_det.engine.distributed import find_device
from norton_det.files import write_json
from norton_det.models.resnet import BLOCK_NAMES, STAGES, ResNetSpec
from norton_det.models.weights import model_from_weights, read_dense_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--weights", required=True, help="a dense ResNet-50 or detector: torchvision's file or ours")
    parser.add_argument("--images", required=True, help="a folder of images or a dataset's name; no labels are read")
    parser.add_argument("--image-count", type=int, default=32, help="images to measure on")
    parser.add_argument(
        "--budget", required=True, help="macs=0.5, parameters=0.5 (shares of the dense body's) or milliseconds=200"
    )
    parser.add_argument(
        "--whole-detector", action="store_true", help="plan for and count all parts, not the body only"
    )
    parser.add_argument(
        "--input-size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="pixels, as the image enters the body (default: 800 800, a classifier's 224 224)",
    )
    parser.add_argument("--criterion", default="pabs", choices=get_args(Criterion), help="how filters are compared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, type=Path, help="where the plan goes (.json)")


def run(args: argparse.Namespace) -> None:
    """Write the plan file, and print it with what it is expected to do."""
    if args.output.suffix != ".json":
        raise ValueError(f"--output {args.output}: a plan is a .json file")
    budget = Budget.parse(args.budget, tuple(args.input_size) if args.input_size else None)
    images = open_images(args.images, args.image_count)
    model = model_from_weights(read_dense_weights(args.weights)).to(find_device("auto"))
    plan, report = search_plan(
        model, images, budget, whole_detector=args.whole_detector, criterion=args.criterion, seed=args.seed
    )
    write_json(args.output, plan.to_dict(), indent=2)
    print(format_plan(plan, Scope(model, args.whole_detector, budget.size).body))
    print(format_report(report, budget))
    print(f"plan: {args.output}")


def format_plan(plan: CompressionPlan, dense: ResNetSpec) -> str:
    """A table: a row a bottleneck, a stage's output, a part."""
    widths = plan.apply(dense).widths
    rows = [f"{'':16}{'rank':>6}{'width':>16}"]
    for stage in STAGES:
        for block in (block for block in BLOCK_NAMES if block.startswith(stage)):
            rank = plan.ranks.get(f"{block}.conv2", "-")
            rows.append(f"{block:16}{rank:>6}{_change(dense.widths[f'{block}.conv2'], widths[f'{block}.conv2']):>16}")
        rows.append(f"{stage + ' output':16}{'':6}{_change(dense.widths[stage], widths[stage]):>16}")
    rows += [f"{part:16}{rank:>6}" for part, rank in plan.parts.items()]
    return "\n".join(rows)


def format_report(report: SearchReport, budget: Budget) -> str:
    """The cost of the plan and of the dense network, and the error that recovery is expected to leave."""
    digits = 0 if budget.is_share else 1
    share = report.cost / report.dense_cost
    return (
        f"{budget.kind}: {report.dense_cost:,.{digits}f} -> {report.cost:,.{digits}f} ({share:.1%})\n"
        f"predicted error: {report.predicted_error:.3f} of the features' energy"
    )


def _change(before: int, after: int) -> str:
    return f"{before} -> {after}" if after < before else str(before)
