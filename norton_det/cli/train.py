"""Train a detector as a configuration says, then evaluate it."""

import argparse
import logging
from pathlib import Path

from norton_det.builders.resolve import resolve_device
from norton_det.builders.runs import evaluate_weights, train_and_evaluate
from norton_det.config import load_config
from norton_det.engine import distributed
from norton_det.engine.folder import LOCK, sole_run

LESS_MEMORY = "lower train.batch_size, model.min_size, model.max_size or data.workers, or raise train.accumulation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--eval-only", action="store_true", help="evaluate model.weights, do not train")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of output_dir")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the configuration")


def run(args: argparse.Namespace) -> None:
    """Train and evaluate; docs/training.md lists the files in output_dir."""
    config = load_config(args.config, args.overrides)
    device = resolve_device(config)
    output = Path(config.output_dir)
    with distributed.process_group(device), sole_run(output / LOCK, f"output_dir: {output}"):
        if not distributed.is_main():
            logging.disable(logging.WARNING)
        if args.eval_only:
            evaluate_weights(config)
        else:
            train_and_evaluate(config, from_checkpoint=args.resume)
