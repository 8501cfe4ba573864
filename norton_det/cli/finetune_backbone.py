"""Fine-tune a compressed ResNet-50 on classification: the paper's one stage, from which detectors then start."""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet

from norton_det.builders.detector import backbone_from_weights
from norton_det.cli.options import require_at_least
from norton_det.data.imagefolder import LabelledImages, classification_batches, classification_evaluation_loader
from norton_det.data.loaders import epoch_length
from norton_det.engine import distributed
from norton_det.engine.checkpoint import CheckpointFolder
from norton_det.engine.damage import within_limit
from norton_det.engine.finetuning import ClassificationLosses, finetuning_run
from norton_det.engine.folder import LOCK, put_aside, sole_run
from norton_det.engine.metrics import MetricsWriter
from norton_det.engine.resuming import Contents, by_setting, check_changes, digests
from norton_det.engine.trainer import resume, train
from norton_det.evaluation.classification import Hits, evaluate_classifier
from norton_det.files import write_json
from norton_det.models.layout import to_channels_last
from norton_det.models.norms import warn_of_small_batches
from norton_det.models.persistence import describe, resnet_from_weights, save_weights
from norton_det.models.precision import PRECISIONS
from norton_det.models.weights import Weights, read_weights

log = logging.getLogger(__name__)
LESS_MEMORY = "lower --batch-size, --image-size or --workers"
RULES = by_setting({
    "changes": """
        output_dir epochs max_iterations lr weight_decay warmup_epochs label_smoothing distill_weight temperature
        image_size workers damaged_images checkpoint_period precision device
    """,
    "by content": "weights plan teacher data",
})  # fmt: skip
"""Which options may be others when a run is resumed; all others stay."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    option = parser.add_argument
    option("--weights", required=True, help="a ResNet-50: dense, compressed, or a published checkpoint")
    option(
        "--plan", help="compresses dense weights first: a preset (norton-77), a JSON file, or the paper's notation"
    )
    option("--data", required=True, type=Path, help="a folder with train/<class>/*.jpg and val/<class>/*.jpg")
    option("--output-dir", type=Path, default=Path("output/backbone"))
    option("--epochs", type=int, default=200)
    option("--batch-size", type=int, default=256, help="images a step, of all processes together")
    option("--lr", type=float, default=0.01, help="for the batch size as given")
    option("--weight-decay", type=float, default=1e-4)
    option("--warmup-epochs", type=float, default=1.0)
    option("--label-smoothing", type=float, default=0.1)
    option("--teacher", help="the dense network's weights, to learn from its logits as well")
    option("--distill-weight", type=float, default=0.5, help="the teacher's share of the loss, 0 to 1")
    option("--temperature", type=float, default=4.0, help="what distillation divides the logits by")
    option("--image-size", type=int, default=224, help="pixels")
    option("--workers", type=int, default=4)
    option("--damaged-images", type=int, default=0, help="training images that cannot be read to skip before a stop")
    option("--max-iterations", type=int, help="overrides the epochs; the warm-up shrinks with it")
    option("--checkpoint-period", type=int, default=5000, help="iterations")
    option("--precision", choices=list(PRECISIONS), default="float32", help="of the networks in training")
    option("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    option("--seed", type=int, default=0)
    option("--resume", action="store_true", help="go on from the newest checkpoint of the output folder")
    option("--eval-only", action="store_true", help="evaluate the weights, do not train")


def run(args: argparse.Namespace) -> None:
    """Fine-tune and evaluate; see the README for what is left in the output folder."""
    require_at_least(args, damaged_images=0)
    device = distributed.find_device(args.device)
    with distributed.process_group(device), sole_run(args.output_dir / LOCK, f"--output-dir {args.output_dir}"):
        if not distributed.is_main():
            logging.disable(logging.WARNING)
        test = LabelledImages(args.data / "val", training=False, size=args.image_size)
        checkpoint = CheckpointFolder(args.output_dir / "checkpoints").load_newest() if args.resume else None
        network = resumed_network(checkpoint) if checkpoint else starting_network(args, test.classes)
        to_channels_last(network.to(device))
        if not args.eval_only:
            finetune(args, network, checkpoint, device)
        share = max(1, args.batch_size // distributed.world_size())
        loader = classification_evaluation_loader(test, batch_size=share, workers=args.workers, **_process())
        hits = evaluate_classifier(network, loader, device, distributed.is_main())
        metrics = sum(distributed.gather(hits), Hits()).percentages()
        if distributed.is_main():
            write_json(args.output_dir / "evaluation/metrics.json", metrics)
            log.info("top-1 %.2f %%  top-5 %.2f %%  of %d images", metrics["top1"], metrics["top5"], len(test))


def resumed_network(checkpoint: dict[str, Any]) -> ResNet:
    """The network of a checkpoint: nothing is compressed again."""
    return resnet_from_weights(Weights("--resume", checkpoint["model"], checkpoint))


def starting_network(args: argparse.Namespace, classes: list[str]) -> ResNet:
    """The network of --weights, compressed where it is dense, for these classes.

    Raises ValueError where it is to be evaluated and knows other classes.
    """
    torch.manual_seed(args.seed)
    weights = read_weights(args.weights)
    network = backbone_from_weights(weights, args.plan, strict=args.eval_only).model
    if network.fc.out_features != len(classes) or weights.metadata.get("categories", classes) != classes:
        found = f"{args.weights} knows {network.fc.out_features} other classes than the {len(classes)} of {args.data}"
        if args.eval_only:
            raise ValueError(f"{found}: it cannot be evaluated on them")
        log.info("%s: its classifier, fc, starts afresh", found)
        network.fc = nn.Linear(network.fc.in_features, len(classes))
    network.categories = classes
    return network


def finetune(
    args: argparse.Namespace, network: ResNet, checkpoint: dict[str, Any] | None, device: torch.device
) -> None:
    """Train the network in place, from a checkpoint on where there is one, and write model_final.pth.

    Raises ValueError where the data's two halves, or the teacher, know other classes.
    """
    data = LabelledImages(args.data / "train", training=True, size=args.image_size, seed=args.seed)
    different = {*data.classes} ^ {*network.categories}
    if different:
        raise ValueError(f"{args.data}: train and val differ in classes: {', '.join(sorted(different)[:4])}")
    config = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    del config["resume"], config["eval_only"]
    named = digests({name: config[name] for name in ("weights", "plan", "teacher")})
    contents: Contents = {"data": data.names_digest(), **named}
    if checkpoint:
        contents = check_changes(checkpoint["config"], config, RULES, checkpoint.get("contents", {}), contents)
    losses = ClassificationLosses(
        device=device,
        precision=PRECISIONS[args.precision],
        label_smoothing=args.label_smoothing,
        teacher=_teacher(args.teacher, len(data.classes), device) if args.teacher else None,
        distill_weight=args.distill_weight,
        temperature=args.temperature,
    )
    warn_of_small_batches(network, args.batch_size // distributed.world_size(), distributed.world_size())
    run = finetuning_run(
        network,
        losses,
        images_per_step=args.batch_size,
        seed=args.seed,
        epoch_length=epoch_length(data, args.batch_size),
        epochs=args.epochs,
        max_iterations=args.max_iterations,
        warmup_epochs=args.warmup_epochs,
        lr=args.lr,
        weight_decay=args.weight_decay,
        checkpoints=CheckpointFolder(args.output_dir / "checkpoints"),
        checkpoint_period=args.checkpoint_period,
        description=lambda: {**describe(network), "config": config, "contents": contents},
    )
    start = resume(run, checkpoint)
    if not checkpoint:
        put_aside(args.output_dir)
    batches = classification_batches(
        data,
        images_per_step=args.batch_size,
        seed=args.seed,
        workers=args.workers,
        damaged_images=args.damaged_images,
        start=start,
        **_process(),
    )
    with MetricsWriter(args.output_dir / "metrics.jsonl", run.iterations, start) as metrics:
        train(run, within_limit(batches, args.damaged_images), metrics, start)
    if distributed.is_main():
        save_weights(args.output_dir / "model_final.pth", network, config=config)
        log.info("weights: %s", args.output_dir / "model_final.pth")


def _teacher(path: str, classes: int, device: torch.device) -> ResNet:
    teacher = resnet_from_weights(read_weights(path))
    if teacher.fc.out_features != classes:
        raise ValueError(f"--teacher {path}: it knows {teacher.fc.out_features} classes, the data have {classes}")
    return teacher.to(device, memory_format=torch.channels_last)


def _process() -> dict[str, int]:
    return {"rank": distributed.rank(), "world_size": distributed.world_size()}
