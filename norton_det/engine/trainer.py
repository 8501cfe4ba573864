"""Runs the training loop."""

import itertools
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from norton_det.engine import distributed
from norton_det.engine.averaging import WeightAverage
from norton_det.engine.checkpoint import CheckpointFolder
from norton_det.engine.interruption import StopSignals
from norton_det.engine.metrics import Averages, MetricsWriter, gpu_memory
from norton_det.engine.optim import Schedule, set_rate
from norton_det.models.weights import load_state

log = logging.getLogger(__name__)
Batch = Any
Losses = Callable[[nn.Module, Batch], dict[str, Tensor]]
SMALLEST_SCALE = 2.0**-14
"""Least scale of the loss in float16: a scaler that starts at 2^16 falls below it after 30 overflows in a row."""


@dataclass(frozen=True)
class TrainingRun:
    """Says what one run trains and how.

    Args:
        model: the model to train, on its device.
        losses: maps the model and a batch to named scalar losses, which are summed.
        optimizer: the optimiser of the model's parameters.
        schedule: the learning rate after so many iterations.
        iterations: the number of iterations in all.
        images_per_step: images in a step of all processes together.
        checkpoints: the folder of the checkpoints.
        description: returns what a checkpoint says beside its tensors, plain types.
        checkpoint_period: iterations between checkpoints.
        log_period: iterations between lines of metrics.
        seed: seed of the random numbers that the model draws.
        clip_norm: the largest norm of a step's gradient; None does not clip.
        accumulation: batches whose gradients make up one step of this process.
        average: an average of the weights; if there is one, its model is the result.
        scaler: the scaler of the loss, for float16.
        image_ids: returns the ids of a batch's images, to name them if a loss is not finite.
    """

    model: nn.Module
    losses: Losses
    optimizer: Optimizer
    schedule: Schedule
    iterations: int
    images_per_step: int
    checkpoints: CheckpointFolder
    description: Callable[[], dict[str, Any]]
    checkpoint_period: int
    log_period: int
    seed: int = 0
    clip_norm: float | None = None
    accumulation: int = 1
    average: WeightAverage[Any] | None = None
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))
    image_ids: Callable[[Batch], list[int]] = lambda batch: []

    @property
    def result(self) -> nn.Module:
        """Return the model to evaluate and keep: the averaged one if there is one."""
        return self.average.model if self.average else self.model


def train(run: TrainingRun, batches: Iterator[Batch], metrics: MetricsWriter, start: int) -> None:
    """Train from iteration `start` to the end, writing metrics and checkpoints on the way.

    Several processes average their gradients. `batches` are this process's share, `run.accumulation` of them in each
    step. The main process writes, and all end with the same model.

    Raises:
        FloatingPointError: a loss or a gradient is not finite in any process, or float16 overflows in every step; the
            last checkpoint stays.
        SystemExit: a signal of StopSignals came; raised with 128 + its number after the iteration and a checkpoint.
    """
    run.model.train()
    model = distributed.parallel(run.model)
    averages = Averages()
    tick = time.perf_counter()
    made = start
    with StopSignals() as signals:
        for iteration in range(start + 1, run.iterations + 1):
            step = list(itertools.islice(batches, run.accumulation))
            loaded = time.perf_counter()
            lr = run.schedule(iteration - 1)
            set_rate(run.optimizer, lr)
            losses = add_up_gradients(run, model, step, iteration)
            norm = clip_gradients(run)
            suspects = suspect_batches(run, losses, norm)
            failed, stop = distributed.largest(len(suspects), signals.received)
            if failed:
                raise FloatingPointError(_failure(run, iteration, [step[number] for number in suspects]))
            run.scaler.step(run.optimizer)
            run.scaler.update()
            finite = math.isfinite(norm)
            made += finite
            check_steps_are_made(run, iteration, made)
            if run.average:
                run.average.update(run.model, iteration)

            now = time.perf_counter()
            for values in losses:
                averages.add(values)
            averages.add({"seconds": now - tick, "data_seconds": loaded - tick})
            averages.add({"gradient_norm": norm} if finite else {})
            averages.add({"skipped_steps": float(not finite)} if run.scaler.is_enabled() else {})
            tick = now
            metrics.step()
            if iteration % run.log_period == 0 or iteration == run.iterations:
                means = distributed.mean(averages.read())
                speed = {"images_per_second": run.images_per_step / means["seconds"]}
                metrics.write(iteration, {"lr": lr, **means, **speed, **gpu_memory()})
            if iteration % run.checkpoint_period == 0 or iteration == run.iterations or stop:
                save_checkpoint(run, iteration)
            if stop:
                log.info(
                    "stopped by %s at iteration %d: --resume goes on there", signal.Signals(stop).name, iteration
                )
                raise SystemExit(128 + stop)
    distributed.broadcast(run.result.buffers())  # each process took BatchNorm's statistics from its own images


def add_up_gradients(
    run: TrainingRun, model: nn.Module, batches: list[Batch], iteration: int
) -> list[dict[str, float]]:
    """Compute the mean gradient of a step's batches in the parameters, and return the losses of each batch."""
    run.optimizer.zero_grad()
    found, names = [], ["loss"]
    for number, batch in enumerate(batches):
        seed_generators(run.seed, iteration, distributed.rank() * len(batches) + number)
        with distributed.gradients(model, shared=number == len(batches) - 1):
            losses = run.losses(model, batch)
            values = torch.stack(list(losses.values()))
            loss = values.sum()
            run.scaler.scale(loss / len(batches)).backward()
        found.append(torch.cat([loss[None], values]).detach())
        names = ["loss", *losses]
    return [dict(zip(names, row, strict=True)) for row in torch.stack(found).tolist()]


def seed_generators(*numbers: int) -> None:
    """Seed the generators of a forward pass by (seed, iteration, number of the batch in its step).

    So a resumed run, and one whose batches are spread over other processes, draws the same random numbers.
    """
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def clip_gradients(run: TrainingRun) -> float:
    """Bring the gradient's norm down to `clip_norm`, if one is set, and return the norm before."""
    run.scaler.unscale_(run.optimizer)
    return float(clip_grad_norm_(run.model.parameters(), run.clip_norm or math.inf))


def suspect_batches(run: TrainingRun, losses: list[dict[str, float]], norm: float) -> list[int]:
    """Return the numbers of a step's batches whose loss is not finite, or of all if only the gradient is not.

    With a scaler gradients may overflow: it skips such a step by itself and scales less.
    """
    suspects = [number for number, values in enumerate(losses) if not math.isfinite(values["loss"])]
    if not suspects and not math.isfinite(norm) and not run.scaler.is_enabled():
        return list(range(len(losses)))
    return suspects


def check_steps_are_made(run: TrainingRun, iteration: int, made: int) -> None:
    """Raise FloatingPointError if the scaler has skipped all steps of a run, or will skip all that follow."""
    if not run.scaler.is_enabled():
        return
    if run.scaler.get_scale() < SMALLEST_SCALE:
        told = f"gradients overflow at iteration {iteration} however little the loss is scaled"
    elif iteration == run.iterations and not made:
        told = f"gradients overflowed in every step up to iteration {iteration}: nothing was trained"
    else:
        return
    raise FloatingPointError(f"float16: {told}; train longer, or in bfloat16 or float32")


def save_checkpoint(run: TrainingRun, iteration: int) -> None:
    """Write a checkpoint in the main process, while the others wait. Raises OSError in all if that fails."""
    problem = ""
    if distributed.is_main():
        try:
            run.checkpoints.save(iteration, training_state(run, iteration))
        except OSError as error:
            problem = str(error)
    if problem := "".join(distributed.gather(problem)):
        raise OSError(problem)


def training_state(run: TrainingRun, iteration: int) -> dict[str, Any]:
    """Return all that a resumed run needs, tensors and plain types only; no generators, see `seed_generators`."""
    return {
        "model": run.model.state_dict(),
        "average": run.average.model.state_dict() if run.average else None,
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "iteration": iteration,
        **run.description(),
    }


def resume(run: TrainingRun, state: dict[str, Any] | None) -> int:
    """Put a run back where a checkpoint left it, and return its iteration, 0 without a checkpoint.

    Raises ValueError if the processes have not found the same checkpoint, or it has more iterations than the run.
    """
    start = restore(run, state) if state else 0
    if start > run.iterations:
        raise ValueError(
            f"--resume: {start} iterations are done, more than the {run.iterations} that are asked for:"
            " their number may grow, not shrink below that"
        )
    starts = distributed.gather(start)
    if len(set(starts)) > 1:
        found = ", ".join(map(str, sorted(set(starts))))
        raise ValueError(
            f"--resume: the processes find checkpoints of iterations {found} (0: none) in"
            f" {run.checkpoints.folder}; expected a folder that all machines share"
        )
    if start == run.iterations:
        log.info("all %d iterations are done: nothing is left to train", start)
    return start


def restore(run: TrainingRun, state: dict[str, Any]) -> int:
    """Put a run back where `training_state` left it, and return its iteration.

    Raises ValueError if the state is another model's.
    """
    load_state(run.model, state["model"], f"--resume: {run.checkpoints.folder}")
    options = run.optimizer.state_dict()["param_groups"]  # as configured now
    run.optimizer.load_state_dict({**state["optimizer"], "param_groups": options})
    if run.average:
        run.average.model.load_state_dict(state["average"] or state["model"])
    if state["scaler"]:
        run.scaler.load_state_dict(state["scaler"])
    return int(state["iteration"])


def _failure(run: TrainingRun, iteration: int, suspects: list[Batch]) -> str:
    """Return a line on a step that is not finite; every process must call this, as they exchange image ids."""
    mine = [image_id for batch in suspects for image_id in run.image_ids(batch)]
    ids = [image_id for part in distributed.gather(mine) for image_id in part]
    images = f", images {', '.join(map(str, ids))}" if ids else ""
    return f"loss or gradient is not finite at iteration {iteration}{images}; see {run.checkpoints.folder}"
