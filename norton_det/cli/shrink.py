"""Make a detector fast enough in one command: from its weights and photos without labels to a file and a report."""

import argparse
import logging
from pathlib import Path
from typing import get_args

from norton_det.cli.options import add_weights, require_at_least, require_positive, share_of_size, weights_words
from norton_det.compression.recover import STEPS
from norton_det.deploy.runtimes import Precision
from norton_det.engine.distributed import find_device
from norton_det.engine.folder import LOCK, sole_run
from norton_det.files import write_json
from norton_det.models.persistence import detector_from_weights
from norton_det.models.weights import read_dense_weights
from norton_det.shrink.choosing import Deadline, Goal, LeastAgreement
from norton_det.shrink.levers import SIZES, find_runtime, usable_precisions, what_is_missing
from norton_det.shrink.making import MINUTES, Recovery, how_to_run, load
from norton_det.shrink.page import write_page
from norton_det.shrink.photos import read_photos
from norton_det.shrink.shrinking import Asked, Result, digest, shrink
from norton_det.shrink.telling import format_result, summary

log = logging.getLogger(__name__)
GOES_ON = "the same command goes on from there"
LESS_MEMORY = "give it smaller --images, or fewer (--image-count)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_weights(parser, "a dense detector")
    parser.add_argument("--images", required=True, type=Path, help="a folder of photos; no labels are read")
    parser.add_argument("--image-count", type=int, default=200, help="how many of the photos to use")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--milliseconds", type=float, help="deadline: the most that an image may take on this machine")
    goal.add_argument("--agreement", type=float, help="the least agreement with the dense detector, 0.9 or 90")
    parser.add_argument(
        "--output", required=True, type=Path, help=".xml for OpenVINO, .onnx for onnxruntime, .pth for torch"
    )
    parser.add_argument("--precision", choices=get_args(Precision), help="use this precision instead of the best one")
    parser.add_argument("--size", type=int, help="pixels of an image's shorter side, instead of the best size")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes", type=float, help=f"length of recovery for each plan that is tried (default: {MINUTES})"
    )
    length.add_argument("--steps", type=int, help="steps of recovery instead: the same seed gives the same detector")
    parser.add_argument("--seed", type=int, default=0, help="decides which images and crops are seen when")
    parser.add_argument(
        "--work", type=Path, help="a folder that keeps measurements for the next run (default: OUTPUT.shrink)"
    )


def run(args: argparse.Namespace) -> None:
    """Write the file and the report, and print the result."""
    require_at_least(args, steps=0, image_count=1, size=1)
    require_positive(args, "minutes", "milliseconds")
    goal = _goal(args)
    runtime = find_runtime(args.output)
    precisions = usable_precisions(runtime)
    if args.precision and args.precision not in precisions:
        raise ValueError(f"--precision {args.precision}: {args.output.name} can be {', '.join(precisions)} here")
    if told := what_is_missing(runtime):
        log.info(told)
    dense = detector_from_weights(read_dense_weights(*weights_words(args)))
    sizes = [share_of_size(dense, args.size, SIZES[-1])] if args.size else SIZES
    photos = read_photos(args.images, args.image_count)
    minutes = MINUTES if args.minutes is None and args.steps is None else args.minutes
    steps = STEPS if args.steps is None else args.steps
    recovery = Recovery(steps, minutes, args.seed, find_device("auto"))
    asked = Asked(goal, runtime, (args.precision,) if args.precision else precisions, recovery, sizes)
    work = args.work or args.output.with_suffix(".shrink")
    page = args.output.with_suffix(".html")

    def report(result: Result) -> None:
        write_json(args.output.with_suffix(".shrink.json"), summary(result, photos.held.paths))
        small = load(args.output, result.after.option.choice.precision, photos.held[0])
        write_page(page, args.output.name, result, photos.held, dense, small)

    with sole_run(work / LOCK, f"--work {work}"):
        files = [Path(file) for file in weights_words(args) if file]
        result = shrink(dense, photos, asked, args.output, work / digest(files, photos, asked), report)
    print(format_result(result))
    if not result.is_met:
        log.warning("%s is not reached: this is the nearest that was found", goal)
    run_it = how_to_run(args.output, result.after.option.choice.precision)
    print(f"file:   {args.output}\nreport: {page}\nrun it: {run_it}")


def _goal(args: argparse.Namespace) -> Goal:
    if args.milliseconds is not None:
        return Deadline(args.milliseconds)
    if not 0 < args.agreement <= 100:
        raise ValueError(f"--agreement {args.agreement:g}: expected a share, up to 1, or points, up to 100")
    return LeastAgreement(args.agreement if args.agreement > 1 else 100 * args.agreement)
