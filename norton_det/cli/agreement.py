"""Compute how far a detector agrees with another, such as a smaller one with its original, on unlabelled images."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from norton_det.api import agreement, load_detector
from norton_det.cli.options import require_at_least, share
from norton_det.data.catalog import open_images
from norton_det.data.reading import FINDINGS
from norton_det.engine.distributed import find_device
from norton_det.evaluation.agreement import SCORE, Agreement, format_points
from norton_det.files import write_json

LESS_MEMORY = "give it smaller --images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("reference", help="the detector that is taken to be right: weights or an exported file")
    parser.add_argument("detector", help="the detector to compare with it: weights or an exported file")
    parser.add_argument("--images", required=True, help="a folder or a dataset's name; new to both detectors")
    parser.add_argument("--image-count", type=int, default=200, help="how many of the images to use")
    parser.add_argument(
        "--score",
        type=share,
        default=SCORE,
        help="what the reference finds with at least this score, over four views, is the truth",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, also those of each image")


def run(args: argparse.Namespace) -> None:
    """Print the tables and write the JSON."""
    require_at_least(args, image_count=1)
    device = find_device(args.device)
    images = open_images(args.images, args.image_count)
    reference, detector = (load_detector(path).to(device) for path in (args.reference, args.detector))
    found = agreement(reference, detector, images, args.score)
    print(format_agreement(found))
    if args.json:
        names = {"reference": args.reference, "detector": args.detector}
        write_json(args.json, names | to_dict(found, images.paths))


def format_agreement(found: Agreement) -> str:
    """Format two tables, with a row for each kind of finding and for each category, and say what was compared."""
    names = list(found.tasks["bbox"].metrics)[1:]
    rows = [f"{'':12}{'agreement':>11}{'95 %':>16}" + "".join(f"{name:>8}" for name in names)]
    for task, values in found.tasks.items():
        interval = " to ".join(map(format_points, values.interval))
        others = "".join(f"{format_points(values.metrics.get(name)):>8}" for name in names)
        rows.append(f"{FINDINGS[task]:12}{format_points(values.metrics['AP']):>11}{interval:>16}{others}")
    rows += ["", f"{'agreement in':24}{'findings':>10}" + "".join(f"{FINDINGS[task]:>12}" for task in found.tasks)]
    for name in found.tasks["bbox"].by_category:
        aps = "".join(f"{format_points(values.by_category.get(name)):>12}" for values in found.tasks.values())
        rows.append(f"{name:24}{found.found_by_category[name]:>10}{aps}")
    sure = f"the reference is sure of {found.found} objects on {len(found.found_by_image)} images"
    rows += ["", f"{sure}: their score, as the mean over four views, is at least {found.score:g}"]
    if not math.isnan(found.matching_score):
        rows.append(
            f"from a score of {found.matching_score:.2f} on, the detector finds as many objects as the reference "
            f"from {found.score:g} on"
        )
    return "\n".join(rows)


def to_dict(found: Agreement, paths: Sequence[Path]) -> dict[str, Any]:
    """Put an agreement into plain types; images are sorted by F1 of the last kind of finding, the lowest first."""
    tasks = {task: asdict(values) for task, values in found.tasks.items()}
    f1 = {task: values.pop("by_image") for task, values in tasks.items()}
    images = [
        {"file": str(path), "findings": count, **dict(zip(f1, values, strict=True))}
        for path, count, *values in zip(paths, found.found_by_image, *f1.values(), strict=True)
    ]
    images.sort(key=lambda image: image[[*f1][-1]])
    return {
        "score": found.score,
        "matching_score": found.matching_score,
        "image_count": len(images),
        "findings": found.found,
        "findings_by_category": found.found_by_category,
        "tasks": tasks,
        "images": images,
    }
