"""Trains one part of a network to give the outputs of another, on maps of images that lie on disk."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from norton_det.analysis.watch import watch_inputs
from norton_det.compression.activations import ActivationFile
from norton_det.compression.optimizers import scaled_adam, set_rates
from norton_det.models.device import device_of

LEARNING_RATE = 0.05
"""The peak learning rate of a tensor, as a share of its numbers' root mean square."""
Files = Sequence[ActivationFile]


@dataclass(frozen=True)
class Distillation:
    """Sets how a part is trained.

    Attributes:
        name: the part's, for the progress bar.
        steps: how many gradient steps it takes.
        read_size: how many maps are read at a time where there is no gradient.
        batch_size: how many maps a gradient step has.
        held: how many maps, the first ones, are held back.
        generator: draws the maps of each step.
        seconds: how long the steps may take, whatever their number.
    """

    name: str
    steps: int
    read_size: int
    batch_size: int
    held: int
    generator: torch.Generator
    seconds: float = math.inf


def distill(
    part: nn.Module, inputs: Files, targets: Files, how: Distillation, refit: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """Train a part, in place, towards targets; return the errors ||y - target|| / ||target|| before and after.

    BatchNorm's statistics are taken from the inputs first and then stay fixed; `refit` solves what has a closed form;
    then Adam trains every parameter. Of the part as it was found, as solved and as trained, the one with the smallest
    error on held-back maps is kept.
    """
    held, trained = range(how.held), range(how.held, inputs[0].count)
    before = best = output_error(part, inputs, targets, held, how.read_size)
    if before == 0:
        return before, before
    kept = copy.deepcopy(part.state_dict())

    def solve() -> None:
        estimate_statistics(part, inputs, how.read_size)
        refit()

    for change in (solve, partial(_train, part, inputs, targets, trained, how)):
        change()
        error = output_error(part, inputs, targets, held, how.read_size)
        if error < best:
            best, kept = error, copy.deepcopy(part.state_dict())
    part.load_state_dict(kept)
    return before, best


def outputs_of(part: nn.Module, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return a part's outputs as a tuple of maps, be it one tensor or several; (N, C) becomes (N, C, 1, 1)."""
    outputs = part(*maps)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(output[..., None, None] if output.ndim == 2 else output for output in outputs)


def read_batches(files: Files, indices: Sequence[int], size: int, device: torch.device) -> Iterator[list[Tensor]]:
    """Yield the maps at the given indices, `size` at a time."""
    for start in range(0, len(indices), size):
        yield [file.read(indices[start : start + size]).to(device) for file in files]


@torch.no_grad()
def output_error(part: nn.Module, inputs: Files, targets: Files, indices: Sequence[int], size: int) -> float:
    """Return the root of the mean over the outputs of  |y - target|^2 / |target|^2,  each summed over the maps."""
    device = device_of(part)
    difference, energy = (torch.zeros(len(targets), dtype=torch.float64) for _ in range(2))
    for maps, wanted in zip(
        read_batches(inputs, indices, size, device), read_batches(targets, indices, size, device), strict=True
    ):
        for place, (y, target) in enumerate(zip(outputs_of(part, maps), wanted, strict=True)):
            difference[place] += (y - target).double().square().sum().cpu()
            energy[place] += target.double().square().sum().cpu()
    return math.sqrt((difference / energy.clamp_min(1e-30)).mean().item())


def _train(part: nn.Module, inputs: Files, targets: Files, indices: Sequence[int], how: Distillation) -> None:
    device = device_of(part)
    with all_trainable(part) as parameters:
        optimizer = scaled_adam(parameters, LEARNING_RATE)
        started = time.monotonic()
        for step in tqdm(range(how.steps), desc=f"restore {how.name}", leave=False):
            share = max((step + 0.5) / how.steps, (time.monotonic() - started) / how.seconds)
            if share >= 1:
                break
            set_rates([optimizer], share)
            order = torch.randperm(len(indices), generator=how.generator)[: how.batch_size]
            chosen = [indices[place] for place in order.tolist()]
            wanted = [file.read(chosen).to(device) for file in targets]
            outputs = outputs_of(part, [file.read(chosen).to(device) for file in inputs])
            losses = [
                (y - target).square().mean() / target.square().mean().clamp_min(1e-30)
                for y, target in zip(outputs, wanted, strict=True)
            ]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()


@contextmanager
def all_trainable(part: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Take the gradient of every parameter inside the `with` block, which yields the parameters."""
    parameters = list(part.parameters())
    wanted = [parameter.requires_grad for parameter in parameters]
    part.requires_grad_(True)
    try:
        yield parameters
    finally:
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = None


@torch.no_grad()
def estimate_statistics(part: nn.Module, inputs: Files, size: int) -> None:
    """Set the running statistics of every BatchNorm to the mean over the inputs' batches; eval mode after."""
    norms = batch_norms(part)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for maps in read_batches(inputs, range(inputs[0].count), size, device_of(part)):
        part(*maps)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@torch.no_grad()
def settle_statistics(part: nn.Module, run: Callable[[], object]) -> None:
    """Set the running statistics to those of what `run` passes through the part, and weight and bias so that the part
    computes what it did before.

    Training that follows normalises by the statistics of its batches, so these should be what the weights expect.
    """
    norms = batch_norms(part)
    if not norms:
        return
    seen: dict[nn.BatchNorm2d, list[tuple[int, Tensor]]] = {norm: [] for norm in norms}

    def record(norm: nn.BatchNorm2d, x: Tensor) -> None:
        x = x.double()
        seen[norm].append((len(x), torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])))

    with watch_inputs({norm: norm for norm in norms}, record):
        run()
    for norm, passes in seen.items():
        passes = [(count, moments) for count, moments in passes if count]
        if not passes:
            continue
        total = sum(count for count, _ in passes)
        mean, square = torch.stack([count / total * moments for count, moments in passes]).sum(0)
        assert norm.running_mean is not None and norm.running_var is not None
        deviation = (norm.running_var.double() + norm.eps).sqrt()
        variance = (square - mean.square()).clamp_min(0)
        norm.bias.add_((norm.weight * (mean - norm.running_mean) / deviation).to(norm.bias.dtype))
        norm.weight.mul_(((variance + norm.eps).sqrt() / deviation).to(norm.weight.dtype))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def batch_norms(part: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the trainable BatchNorms of a part."""
    return [module for module in part.modules() if isinstance(module, nn.BatchNorm2d)]
