"""The training loop."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from norton_det.engine import distributed
from norton_det.engine.checkpoint import CheckpointFolder
from norton_det.engine.metrics import Averages, MetricsWriter

Batch = Any
Losses = Callable[[nn.Module, Batch], dict[str, Tensor]]


@dataclass(frozen=True)
class TrainingRun:
    """What one run trains and how. `losses` maps the model and a batch to named scalar losses, which are summed."""

    model: nn.Module
    losses: Losses
    optimizer: Optimizer
    schedule: LRScheduler
    iterations: int
    checkpoints: CheckpointFolder
    description: Callable[[], dict[str, Any]]
    checkpoint_period: int
    log_period: int
    clip_norm: float | None


def train(run: TrainingRun, batches: Iterator[Batch], metrics: MetricsWriter, start: int) -> None:
    """Train from iteration `start` to the end, writing metrics and checkpoints on the way.

    Several processes average their gradients, `batches` being each one's share of a step; the main one writes,
    and all end with the same model.

    Raises FloatingPointError where the loss is not finite; the last checkpoint stays.
    """
    run.model.train()
    model = distributed.parallel(run.model)
    averages = Averages()
    tick = time.perf_counter()
    for iteration in range(start + 1, run.iterations + 1):
        batch = next(batches)
        loaded = time.perf_counter()
        lr = run.schedule.get_last_lr()[0]
        losses = run.losses(model, batch)
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at iteration {iteration}")
        run.optimizer.zero_grad()
        loss.backward()
        if run.clip_norm is not None:
            clip_grad_norm_(run.model.parameters(), run.clip_norm)
        run.optimizer.step()
        run.schedule.step()

        now = time.perf_counter()
        averages.add({"loss": loss.item(), **{name: value.item() for name, value in losses.items()}})
        averages.add({"seconds": now - tick, "data_seconds": loaded - tick})
        tick = now
        metrics.step()
        if iteration % run.log_period == 0 or iteration == run.iterations:
            metrics.write(iteration, {"lr": float(lr), **averages.read()})
        if distributed.is_main() and (iteration % run.checkpoint_period == 0 or iteration == run.iterations):
            run.checkpoints.save(iteration, training_state(run, iteration))
    distributed.share_buffers(run.model)


def training_state(run: TrainingRun, iteration: int) -> dict[str, Any]:
    """Everything that a resumed run needs, tensors and plain types only."""
    return {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "schedule": run.schedule.state_dict(),
        "iteration": iteration,
        "generator": torch.get_rng_state(),
        "cuda_generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        **run.description(),
    }


def restore(run: TrainingRun, state: dict[str, Any]) -> int:
    """Put a run back where `training_state` left it; returns the iteration."""
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["generator"])
    if torch.cuda.is_available() and state["cuda_generators"]:
        torch.cuda.set_rng_state_all(state["cuda_generators"])
    return int(state["iteration"])
