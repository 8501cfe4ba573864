"""Makes optimisers that train each tensor at a learning rate in shares of its own size, which differ widely by layer,
and sets their rates."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from norton_det.models.precision import fastest_precision

LEAST_SCALE = 0.01
"""The least root mean square that is used, for tensors of smaller numbers such as a bias of zeros."""
WARMUP = 0.1
"""The share of the steps in which the learning rate rises; then it falls to nothing."""
MOMENTUM = 0.95
LEAST_SIDE, MOST_SIDE = 16, 4608
"""A matrix with a smaller side gains nothing from an orthogonal step, and with a larger one the step takes long."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5 in a polynomial that, applied five times, takes numbers from 0.01 to 1 near 1."""


class Muon(Optimizer):
    """Trains weights that are matrices by orthogonal steps, the nearest to the momentum of the gradient.

    Such a step moves all directions of a matrix alike, also those in which the gradient is small. The weight of a
    convolution (K, C, kh, kw) counts as a matrix (K, C * kh * kw), CP factors (R, K, C) as R matrices; torch's own
    optimiser of this name takes matrices alone. The root mean square of a step's numbers is about the learning rate.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step by the gradients that the parameters have."""
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                matrices = as_matrices(parameter.grad.lerp(momentum, MOMENTUM))
                direction = nearly_orthogonal(matrices).reshape(parameter.shape)
                parameter.sub_(direction, alpha=group["lr"] * math.sqrt(max(matrices.shape[-2:])))


def as_matrices(weight: Tensor) -> Tensor:
    """Return channel factors (R, K, C) as they are, and any other weight (K, ...) as a matrix (K, N)."""
    return weight if weight.ndim == 3 else weight.flatten(1)


def nearly_orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices (..., M, N) with their singular vectors, and singular values between about 0.7 and 1.2.

    Singular values below a hundredth of a matrix's norm stay smaller. The iteration is Newton and Schulz's, in the
    precision that is fastest.
    """
    x: Tensor = matrices.to(fastest_precision(matrices.device))
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    first, third, fifth = NEWTON_SCHULZ
    for _ in range(5):
        square = x @ x.mT
        x = first * x + (third * square + fifth * square @ square) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def is_matrix(parameter: Tensor) -> bool:
    """Tell whether an orthogonal step is worth its time for a parameter."""
    if parameter.ndim < 2:
        return False
    sides = as_matrices(parameter).shape[-2:]
    return min(sides) >= LEAST_SIDE and max(sides) <= MOST_SIDE


def scaled_muon(parameters: Sequence[nn.Parameter], rate: float, matrix_rate: float) -> list[Optimizer]:
    """Return Muon for the matrices among parameters, and `scaled_adam` for the others."""
    matrices = [p for p in parameters if is_matrix(p)]
    others = [p for p in parameters if not is_matrix(p)]
    return [
        *([Muon(_scaled(matrices, matrix_rate))] if matrices else []),
        *([scaled_adam(others, rate)] if others else []),
    ]


def scaled_adam(parameters: Sequence[nn.Parameter], rate: float) -> Optimizer:
    """Return Adam with a peak learning rate for each tensor: `rate` times the root mean square of its numbers."""
    return torch.optim.Adam(_scaled(parameters, rate))


def _scaled(parameters: Sequence[nn.Parameter], rate: float) -> list[dict[str, Any]]:
    """Return a group for each parameter; `peak` is its highest learning rate."""
    scales = [max(LEAST_SCALE, p.detach().square().mean().sqrt().item()) for p in parameters]
    return [{"params": [p], "peak": rate * scale} for p, scale in zip(parameters, scales, strict=True)]


def set_rates(optimizers: Iterable[Optimizer], share: float) -> None:
    """Set the learning rates when a share of the training is over: they rise, then fall to 0 as a cosine."""
    factor = min(share / WARMUP, 0.5 * (1 + math.cos(math.pi * share)))
    for group in _groups(optimizers):
        group["lr"] = factor * group["peak"]


def lower_peaks(optimizers: Iterable[Optimizer], share: float) -> None:
    """Multiply the peaks of the learning rates by `share`."""
    for group in _groups(optimizers):
        group["peak"] *= share


def _groups(optimizers: Iterable[Optimizer]) -> Iterable[dict[str, Any]]:
    return (group for optimizer in optimizers for group in optimizer.param_groups)
