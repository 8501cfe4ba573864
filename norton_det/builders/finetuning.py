"""Fine-tunes a classifier, which is compressed first if it is dense, from a file of weights and folders of images."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet

from norton_det.builders.detector import backbone_from_weights
from norton_det.data.imagefolder import LabelledImages, classification_batches, classification_evaluation_loader
from norton_det.data.loaders import epoch_length
from norton_det.engine import distributed
from norton_det.engine.checkpoint import CheckpointFolder
from norton_det.engine.damage import within_limit
from norton_det.engine.finetuning import ClassificationLosses, finetuning_run
from norton_det.engine.folder import put_aside
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
RULES = by_setting({
    "changes": """
        output_dir epochs max_iterations lr weight_decay warmup_epochs label_smoothing distill_weight temperature
        image_size workers damaged_images checkpoint_period precision device
    """,
    "by content": "weights plan teacher data",
})  # fmt: skip
"""The options that may change when a run is resumed; all others must stay."""


@dataclass(frozen=True)
class FineTuning:
    """Says what is fine-tuned, on what, and how; checkpoints hold it, and `RULES` say what a resumed run may change.

    Attributes:
        weights: the file of a ResNet: dense, compressed, or a published checkpoint.
        plan: the plan that compresses dense weights first; None: they stay dense.
        data: a folder with train/<class>/*.jpg and val/<class>/*.jpg.
        output_dir: where the run leaves its files.
        epochs, warmup_epochs: passes over the training images, and those in which the learning rate rises.
        batch_size: images in a step of all processes together.
        lr, weight_decay: learning rate and weight decay for this very batch size: neither is scaled.
        label_smoothing, distill_weight, temperature: as for `ClassificationLosses`.
        teacher: the file of a dense network, whose logits are learnt as well; None: there is none.
        image_size: side of the images in pixels.
        workers: processes that read images.
        damaged_images: how many unreadable training images are skipped before the run stops.
        max_iterations: overrides the epochs; the warm-up shrinks with it.
        checkpoint_period: iterations between checkpoints.
        precision: precision of the networks in training, one of `PRECISIONS`.
        device: auto, cpu, cuda or cuda:N.
    """

    weights: str
    plan: str | None
    data: Path
    output_dir: Path
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_epochs: float
    label_smoothing: float
    teacher: str | None
    distill_weight: float
    temperature: float
    image_size: int
    workers: int
    damaged_images: int
    max_iterations: int | None
    checkpoint_period: int
    precision: str
    device: str
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain types."""
        return {**asdict(self), "data": str(self.data), "output_dir": str(self.output_dir)}


def finetune_and_evaluate(
    settings: FineTuning, device: torch.device, *, from_checkpoint: bool = False, only_evaluate: bool = False
) -> None:
    """Fine-tune and evaluate the network of the weights, or of the newest checkpoint of the output folder.

    Raises ValueError as `starting_network` and `finetune` do.
    """
    test = LabelledImages(settings.data / "val", training=False, size=settings.image_size)
    checkpoint = CheckpointFolder(settings.output_dir / "checkpoints").load_newest() if from_checkpoint else None
    if checkpoint:
        network = resumed_network(checkpoint)
        if network.categories != test.classes:
            raise ValueError(
                f"{settings.data / 'val'}: other classes than those of the checkpoint that --resume takes"
            )
    else:
        network = starting_network(settings, test.classes, strict=only_evaluate)
    to_channels_last(network.to(device))
    if not only_evaluate:
        finetune(settings, network, checkpoint, device)
    evaluate_accuracy(settings, network, test, device)


def evaluate_accuracy(settings: FineTuning, network: ResNet, images: LabelledImages, device: torch.device) -> None:
    """Write top-1 and top-5 accuracy, computed by all processes together, into evaluation/metrics.json."""
    share = max(1, settings.batch_size // distributed.world_size())
    loader = classification_evaluation_loader(images, batch_size=share, workers=settings.workers, **_process())
    hits = evaluate_classifier(network, loader, device, distributed.is_main())
    metrics = sum(distributed.gather(hits), Hits()).percentages()
    if distributed.is_main():
        write_json(settings.output_dir / "evaluation/metrics.json", metrics)
        log.info("top-1 %.2f %%  top-5 %.2f %%  of %d images", metrics["top1"], metrics["top5"], len(images))


def resumed_network(checkpoint: dict[str, Any]) -> ResNet:
    """Build the network of a checkpoint: nothing is compressed again."""
    return resnet_from_weights(Weights("--resume", checkpoint["model"], checkpoint))


def starting_network(settings: FineTuning, classes: list[str], *, strict: bool) -> ResNet:
    """Load the network of the weights for these classes, and compress it if it is dense.

    If it knows other classes, its classifier starts afresh; with `strict` that raises ValueError instead.
    """
    torch.manual_seed(settings.seed)
    weights = read_weights(settings.weights)
    network = backbone_from_weights(weights, settings.plan, strict=strict).model
    known = network.fc.out_features
    if known != len(classes) or weights.metadata.get("categories", classes) != classes:
        found = f"{settings.weights} knows {known} other classes than the {len(classes)} of {settings.data}"
        if strict:
            raise ValueError(f"{found}: it cannot be evaluated on them")
        log.info("%s: its classifier, fc, starts afresh", found)
        network.fc = nn.Linear(network.fc.in_features, len(classes))
    network.categories = classes
    return network


def finetune(settings: FineTuning, network: ResNet, checkpoint: dict[str, Any] | None, device: torch.device) -> None:
    """Train the network in place, from a checkpoint on if there is one, and write model_final.pth.

    Raises ValueError if the training images or the teacher have other classes than the network.
    """
    data = LabelledImages(settings.data / "train", training=True, size=settings.image_size, seed=settings.seed)
    different = {*data.classes} ^ {*network.categories}
    if different:
        raise ValueError(f"{settings.data}: train and val differ in classes: {', '.join(sorted(different)[:4])}")
    config = settings.to_dict()
    named = digests({name: config[name] for name in ("weights", "plan", "teacher")})
    contents: Contents = {"data": data.names_digest(), **named}
    if checkpoint:
        contents = check_changes(checkpoint["config"], config, RULES, checkpoint.get("contents", {}), contents)
    losses = ClassificationLosses(
        device=device,
        precision=PRECISIONS[settings.precision],
        label_smoothing=settings.label_smoothing,
        teacher=_teacher(settings.teacher, len(data.classes), device) if settings.teacher else None,
        distill_weight=settings.distill_weight,
        temperature=settings.temperature,
    )
    warn_of_small_batches(network, settings.batch_size // distributed.world_size(), distributed.world_size())
    run = finetuning_run(
        network,
        losses,
        images_per_step=settings.batch_size,
        seed=settings.seed,
        epoch_length=epoch_length(data, settings.batch_size),
        epochs=settings.epochs,
        max_iterations=settings.max_iterations,
        warmup_epochs=settings.warmup_epochs,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        checkpoints=CheckpointFolder(settings.output_dir / "checkpoints"),
        checkpoint_period=settings.checkpoint_period,
        description=lambda: {**describe(network), "config": config, "contents": contents},
    )
    start = resume(run, checkpoint)
    batches = classification_batches(
        data,
        images_per_step=settings.batch_size,
        seed=settings.seed,
        workers=settings.workers,
        damaged_images=settings.damaged_images,
        start=start,
        **_process(),
    )
    if not checkpoint:
        put_aside(settings.output_dir)
    with MetricsWriter(settings.output_dir / "metrics.jsonl", run.iterations, start) as metrics:
        train(run, within_limit(batches, settings.damaged_images), metrics, start)
    if distributed.is_main():
        save_weights(settings.output_dir / "model_final.pth", network, config=config)
        log.info("weights: %s", settings.output_dir / "model_final.pth")


def _teacher(path: str, classes: int, device: torch.device) -> ResNet:
    teacher = resnet_from_weights(read_weights(path))
    if teacher.fc.out_features != classes:
        raise ValueError(f"--teacher {path}: it knows {teacher.fc.out_features} classes, the data have {classes}")
    return teacher.to(device, memory_format=torch.channels_last)


def _process() -> dict[str, int]:
    return {"rank": distributed.rank(), "world_size": distributed.world_size()}
