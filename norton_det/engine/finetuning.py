"""Trains a classifier on cross-entropy and on the logits of a teacher: the paper's fine-tuning stage."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from norton_det.engine.checkpoint import CheckpointFolder
from norton_det.engine.optim import build_optimizer, build_schedule
from norton_det.engine.trainer import TrainingRun

MOMENTUM = 0.9
LOG_PERIOD = 20


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute how far a student's logits (N, C) are from its teacher's, a scalar:

        T^2 * mean over N of KL( softmax(teacher / T) || softmax(student / T) )

    T^2 keeps the gradients as large as those of cross-entropy. Source: Hinton, Vinyals, Dean, arXiv:1503.02531.
    """
    log_p = F.log_softmax(teacher / temperature, dim=1)
    log_q = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class ClassificationLosses:
    """Computes a classifier's losses on a batch of images (N, 3, H, W) and labels (N,), for `TrainingRun.losses`.

    They are cross-entropy or, with a teacher, (1 - a) times cross-entropy and a times `distillation_loss`.

    Args:
        device: the device of the networks.
        precision: networks run under autocast to it; losses are always float32.
        label_smoothing: share of the target that is spread over all classes, 0 to 1.
        teacher: a network with the same classes, left as it is.
        distill_weight: a, 0 to 1.
        temperature: see `distillation_loss`; above 0.

    Raises:
        ValueError: a number is out of its range.
    """

    device: torch.device
    precision: torch.dtype = torch.float32
    label_smoothing: float = 0.0
    teacher: nn.Module | None = None
    distill_weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "distill_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the losses by name, scalars to be summed."""
        images = batch[0].to(self.device, memory_format=torch.channels_last)
        labels = batch[1].to(self.device)
        logits = self._logits(model, images)
        classification = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return {"classification": classification}
        with torch.no_grad():
            wanted = self._logits(self.teacher.eval(), images)
        distillation = distillation_loss(logits, wanted, self.temperature)
        return {
            "classification": (1 - self.distill_weight) * classification,
            "distillation": self.distill_weight * distillation,
        }

    def _logits(self, network: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            logits: Tensor = network(images)
        return logits.float()


def finetuning_run(
    network: nn.Module,
    losses: ClassificationLosses,
    *,
    images_per_step: int,
    seed: int,
    epoch_length: int,
    epochs: int,
    max_iterations: int | None,
    warmup_epochs: float,
    lr: float,
    weight_decay: float,
    checkpoints: CheckpointFolder,
    checkpoint_period: int,
    description: Callable[[], dict[str, Any]],
) -> TrainingRun:
    """Build the training run: SGD with momentum under a cosine schedule after a linear warm-up.

    An epoch has `epoch_length` iterations; `max_iterations` overrides the epochs, and the warm-up shrinks with it.
    Raises ValueError for a number out of its range.
    """
    for name, value in (
        ("epochs", epochs),
        ("max_iterations", max_iterations),
        ("checkpoint_period", checkpoint_period),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= warmup_epochs <= epochs:
        raise ValueError(f"warmup_epochs must lie between 0 and the {epochs} epochs, got {warmup_epochs}")
    full = epochs * epoch_length
    iterations = max_iterations or full
    optimizer = build_optimizer(network, "sgd", lr=lr, momentum=MOMENTUM, weight_decay=weight_decay)
    warmup = round(warmup_epochs * epoch_length * min(1.0, iterations / full))
    return TrainingRun(
        model=network,
        losses=losses,
        optimizer=optimizer,
        schedule=build_schedule("cosine", lr=lr, iterations=iterations, warmup=warmup),
        iterations=iterations,
        images_per_step=images_per_step,
        checkpoints=checkpoints,
        description=description,
        checkpoint_period=checkpoint_period,
        log_period=LOG_PERIOD,
        seed=seed,
        scaler=GradScaler(losses.device.type, enabled=losses.precision == torch.float16),
    )
