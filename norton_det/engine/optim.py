"""Builds the optimiser and the learning-rate schedule."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

REFERENCE_BATCH = 16
"""Images in a step for which a configured learning rate is meant."""
Schedule = Callable[[int], float]
"""The learning rate after so many iterations."""


def scaled_lr(lr: float, optimizer: Literal["sgd", "adamw"], batch_size: int) -> float:
    """Scale a learning rate to `batch_size` images a step: linearly for SGD (Goyal et al. 2017), by the square root
    for AdamW.

    Examples:
        >>> scaled_lr(0.02, "sgd", batch_size=8)
        0.01
    """
    ratio = batch_size / REFERENCE_BATCH
    return lr * (ratio if optimizer == "sgd" else math.sqrt(ratio))


def build_optimizer(
    model: nn.Module, optimizer: Literal["sgd", "adamw"], *, lr: float, momentum: float, weight_decay: float
) -> Optimizer:
    """Build an optimiser of the trainable parameters; vectors (norms and biases) get no weight decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if optimizer == "adamw":
        return AdamW(groups, lr=lr)
    return SGD(groups, lr=lr, momentum=momentum)


def build_schedule(
    kind: Literal["multistep", "cosine"],
    *,
    lr: float,
    iterations: int,
    warmup: int,
    milestones: Sequence[float] = (),
) -> Schedule:
    """Return the learning rate by the number of iterations done: linear warm-up from a thousandth, then the schedule.

    `multistep` divides by ten at each of `milestones`, given as shares of `iterations`; `cosine` ends at zero.
    """
    steps = [round(milestone * iterations) for milestone in milestones]

    def multistep(iteration: int) -> float:
        return 0.1 ** sum(iteration >= step for step in steps)

    def cosine(iteration: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, iteration / iterations)))

    decay: Schedule = {"multistep": multistep, "cosine": cosine}[kind]

    def rate(iteration: int) -> float:
        return lr * (decay(iteration) * (min(1.0, 1e-3 + (1 - 1e-3) * iteration / warmup) if warmup else 1.0))

    return rate


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of an optimiser's next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
