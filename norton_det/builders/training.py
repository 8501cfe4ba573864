"""Builds a configuration's training run and its batches."""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from norton_det.builders.datasets import shrink_to_trained_size
from norton_det.builders.detector import BuiltModel, build_teacher
from norton_det.config import Config
from norton_det.data.coco import CocoDataset
from norton_det.data.loaders import epoch_length, training_loader
from norton_det.data.transforms import output_size
from norton_det.engine import distributed
from norton_det.engine.averaging import WeightAverage
from norton_det.engine.checkpoint import CheckpointFolder
from norton_det.engine.damage import within_limit
from norton_det.engine.detection import detection_losses, image_ids
from norton_det.engine.optim import REFERENCE_BATCH, build_optimizer, build_schedule, scaled_lr
from norton_det.engine.resuming import Contents
from norton_det.engine.trainer import TrainingRun
from norton_det.models.norms import warn_of_small_batches
from norton_det.models.precision import PRECISIONS

log = logging.getLogger(__name__)


def build_training(
    config: Config, built: BuiltModel, dataset: CocoDataset, device: torch.device, contents: Contents | None = None
) -> TrainingRun:
    """Build the training run of a configuration on a dataset, with the model on `device`.

    The dataset is set to shrink images to the training size. The run's checkpoints hold `contents`, the digests of
    the files that it depends on. Raises ValueError as `images_per_pass` and `build_teacher` do.
    """
    train = config.train
    processes = distributed.world_size()
    images = images_per_pass(config)
    shrink_to_trained_size(config, dataset, built.model)
    teacher = build_teacher(config, built.model)
    model: nn.Module = built.model.to(device)
    distributed.wait_for_all()  # the main process may have restored for hours
    distributed.broadcast(model.state_dict().values())
    built.model.transform._skip_resize = output_size(config.data.augmentation) is not None  # in training only
    if config.model.norm == "sync" and processes > 1 and device.type == "cuda":  # torch has it for CUDA only
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    warn_of_small_batches(model, images, processes)
    lr = scaled_lr(train.lr, train.optimizer, train.batch_size)
    told = "learning rate %.3g for %d images a step (train.lr: %g for %d)"
    log.info(told, lr, train.batch_size, train.lr, REFERENCE_BATCH)
    optimizer = build_optimizer(
        model, train.optimizer, lr=lr, momentum=train.momentum, weight_decay=train.weight_decay
    )
    full = max(1, round(train.epochs * epoch_length(dataset, train.batch_size)))
    iterations = train.max_iterations or full
    schedule = build_schedule(
        train.schedule,
        lr=lr,
        iterations=iterations,
        warmup=round(train.warmup_iterations * min(1.0, iterations / full)),
        milestones=[milestone / train.epochs for milestone in train.milestones],
    )
    precision = PRECISIONS[train.precision]
    return TrainingRun(
        model=model,
        losses=partial(
            detection_losses,
            device=device,
            precision=precision,
            teacher=teacher.to(device) if teacher else None,
            distill_weight=train.distill_weight,
        ),
        optimizer=optimizer,
        schedule=schedule,
        iterations=iterations,
        images_per_step=train.batch_size,
        checkpoints=CheckpointFolder(Path(config.output_dir) / "checkpoints"),
        description=lambda: {**built.description(config), "contents": dict(contents or {})},
        checkpoint_period=train.checkpoint_period,
        log_period=train.log_period,
        seed=config.seed,
        clip_norm=train.clip_norm,
        accumulation=train.accumulation,
        average=WeightAverage(model, train.ema) if train.ema else None,
        scaler=GradScaler(device.type, enabled=precision == torch.float16),
        image_ids=image_ids,
    )


def build_batches(config: Config, dataset: CocoDataset, start: int) -> Iterator[Any]:
    """Yield the training batches of this process without end, one for each forward pass, from iteration `start` on.

    Raises ValueError as `images_per_pass` and `within_limit` do.
    """
    loader = training_loader(
        dataset,
        batch_size=images_per_pass(config),
        seed=config.seed,
        workers=config.data.workers,
        damaged_images=config.data.damaged_images,
        start=start,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        accumulation=config.train.accumulation,
    )
    return within_limit(loader, config.data.damaged_images)


def images_per_pass(config: Config) -> int:
    """Return the images in a forward pass of one process. Raises ValueError if a step does not divide into passes."""
    images, processes, passes = config.train.batch_size, distributed.world_size(), config.train.accumulation
    if images % (processes * passes):
        raise ValueError(
            f"train.batch_size: {images} images do not divide among {processes} processes"
            f" with {passes} passes each (train.accumulation)"
        )
    return images // (processes * passes)
