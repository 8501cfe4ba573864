"""Fine-tune a compressed ResNet-50 on classification, as the paper does; detectors then start from it."""

import argparse
import logging
from pathlib import Path

from norton_det.builders.finetuning import FineTuning, finetune_and_evaluate
from norton_det.cli.options import require_at_least
from norton_det.engine import distributed
from norton_det.engine.folder import LOCK, sole_run
from norton_det.models.precision import PRECISIONS

LESS_MEMORY = "lower --batch-size, --image-size or --workers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    option = parser.add_argument
    option("--weights", required=True, help="a ResNet-50: dense, compressed, or a published checkpoint")
    option("--plan", help="compress dense weights first: a preset (norton-77), a JSON file, or the paper's notation")
    option("--data", required=True, type=Path, help="a folder with train/<class>/*.jpg and val/<class>/*.jpg")
    option("--output-dir", type=Path, default=Path("output/backbone"), help="the folder for everything")
    option("--epochs", type=int, default=200, help="passes over the training images")
    option("--batch-size", type=int, default=256, help="images in a step of all processes together")
    option("--lr", type=float, default=0.01, help="learning rate for the given batch size; it is not scaled")
    option("--weight-decay", type=float, default=1e-4, help="the L2 penalty on weights")
    option("--warmup-epochs", type=float, default=1.0, help="epochs in which the learning rate rises")
    option("--label-smoothing", type=float, default=0.1, help="the share of a label spread over all classes")
    option("--teacher", help="the dense network's weights, to learn from its logits as well")
    option("--distill-weight", type=float, default=0.5, help="the teacher's share of the loss, 0 to 1")
    option("--temperature", type=float, default=4.0, help="distillation divides the logits by this")
    option("--image-size", type=int, default=224, help="side of the images in pixels")
    option("--workers", type=int, default=4, help="processes that load images")
    option("--damaged-images", type=int, default=0, help="unreadable training images to skip before stopping")
    option("--max-iterations", type=int, help="overrides the epochs; the warm-up shrinks with it")
    option("--checkpoint-period", type=int, default=5000, help="iterations between checkpoints")
    option("--precision", choices=list(PRECISIONS), default="float32", help="precision of the networks in training")
    option("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    option("--seed", type=int, default=0, help="decides the order of images and their augmentation")
    option("--resume", action="store_true", help="go on from the newest checkpoint of the output folder")
    option("--eval-only", action="store_true", help="evaluate the weights, do not train")


def run(args: argparse.Namespace) -> None:
    """Fine-tune and evaluate; docs/training.md lists the files in the output folder."""
    require_at_least(args, damaged_images=0)
    options = {**vars(args)}
    from_checkpoint, only_evaluate = options.pop("resume"), options.pop("eval_only")
    settings = FineTuning(**options)
    device = distributed.find_device(settings.device)
    with (
        distributed.process_group(device),
        sole_run(settings.output_dir / LOCK, f"--output-dir {settings.output_dir}"),
    ):
        if not distributed.is_main():
            logging.disable(logging.WARNING)
        finetune_and_evaluate(settings, device, from_checkpoint=from_checkpoint, only_evaluate=only_evaluate)
