"""Compute the AP of a results file in COCO's format, from this project or elsewhere."""

import argparse
from pathlib import Path

from norton_det.cli.options import require_at_least
from norton_det.evaluation.coco import MOST_DETECTIONS, evaluate_results, load_results
from norton_det.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--annotations", required=True, type=Path, help="the dataset's JSON")
    parser.add_argument("--predictions", required=True, type=Path, help="a JSON list of results in COCO's format")
    parser.add_argument("--task", required=True, choices=["bbox", "segm", "keypoints"], help="what is compared")
    parser.add_argument(
        "--oks-sigmas", nargs="+", type=float, metavar="S",
        help="sigmas of OKS, one for each keypoint (default: COCO's for COCO's keypoints, 0.05 for others)",
    )  # fmt: skip
    parser.add_argument(
        "--detections", type=int, help="how many detections count in an image, if more than 100 should"
    )
    parser.add_argument("--json", type=Path, help="write the numbers to this file")


def run(args: argparse.Namespace) -> None:
    """Print the metrics and write the JSON."""
    require_at_least(args, detections=1 + max(MOST_DETECTIONS.values()))
    results = load_results(args.predictions, args.annotations, args.task)
    metrics = evaluate_results(
        args.annotations, results, args.task, sigmas=args.oks_sigmas, detections=args.detections
    )
    for name, value in metrics.items():
        print(f"{name:6}{value:8.2f}")
    if args.json:
        write_json(args.json, metrics)
