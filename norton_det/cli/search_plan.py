"""Find the best compression plan for a budget, from unlabelled images."""

import argparse
from pathlib import Path
from typing import get_args

from norton_det.cli.options import add_weights, weights_words
from norton_det.compression.plan import CompressionPlan, kept_channels
from norton_det.compression.saliency import Criterion
from norton_det.compression.search.budget import Budget
from norton_det.compression.search.plan_search import SearchReport, search_plan
from norton_det.data.catalog import open_images
from norton_det.engine.distributed import find_device
from norton_det.files import write_json
from norton_det.models.channels import Body, read_body
from norton_det.models.persistence import model_from_weights
from norton_det.models.weights import read_dense_weights

LESS_MEMORY = "give it smaller --images, or fewer (--image-count)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_weights(parser, "a dense ResNet or detector")
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
        help="pixels of the image as it enters the body (default: 800 800, for a classifier 224 224)",
    )
    parser.add_argument("--criterion", default="pabs", choices=get_args(Criterion), help="how filters are compared")
    parser.add_argument("--seed", type=int, default=0, help="decides the crops that are measured on")
    parser.add_argument("--output", required=True, type=Path, help="where the plan goes (.json)")


def run(args: argparse.Namespace) -> None:
    """Write the plan file, and print the plan with its cost and predicted error."""
    if args.output.suffix != ".json":
        raise ValueError(f"--output {args.output}: a plan is a .json file")
    budget = Budget.parse(args.budget, tuple(args.input_size) if args.input_size else None)
    images = open_images(args.images, args.image_count)
    model = model_from_weights(read_dense_weights(*weights_words(args))).to(find_device("auto"))
    plan, report = search_plan(
        model, images, budget, whole_detector=args.whole_detector, criterion=args.criterion, seed=args.seed
    )
    write_json(args.output, plan.to_dict(), indent=2)
    print(format_plan(plan, read_body(model)))
    print(format_report(report, budget))
    print(f"plan: {args.output}")


def format_plan(plan: CompressionPlan, body: Body) -> str:
    """Format a table with a row for each block, each stage's output and each part."""

    def width(group: str) -> str:
        before = body.groups[group].width
        after = kept_channels(before, plan.rates.get(group, 0.0))
        return f"{before} -> {after}" if after < before else str(before)

    rows = [f"{'':20}{'rank':>6}{'width':>16}"]
    for stage in body.stages:
        for block in (block for block in body.blocks if block.stage == stage):
            if block.name in plan.dropped:
                rows.append(f"{block.name:20}{'left out':>22}")
                continue
            ranks = [plan.ranks[layer] for layer in block.spatial if layer in plan.ranks]
            rows.append(f"{block.name:20}{ranks[0] if ranks else '-':>6}{width(block.inner[-1]):>16}")
        rows.append(f"{stage + ' output':20}{'':6}{width(stage):>16}")
    rows += [f"{part:20}{rank:>6}" for part, rank in plan.parts.items()]
    return "\n".join(rows)


def format_report(report: SearchReport, budget: Budget) -> str:
    """Format the cost of the plan and of the dense network, and the error that recovery is expected to leave."""
    digits = 0 if budget.is_share else 1
    share = report.cost / report.dense_cost
    return (
        f"{budget.kind}: {report.dense_cost:,.{digits}f} -> {report.cost:,.{digits}f} ({share:.1%})\n"
        f"predicted error: {report.predicted_error:.3f} of the features' energy"
    )
