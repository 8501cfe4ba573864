"""Closed-form refits of what stands behind pruned or decomposed layers."""

from typing import Any

import torch
from torch import Tensor

RIDGE = 1e-2
"""The least ridge, as a share of the mean diagonal entry of the normal equations."""


def sample(maps: Tensor, positions: Tensor) -> Tensor:
    """Rows (N*P, K) of feature maps (N, K, H, W) at P flat positions (P,), the same of every image."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)[:, positions].flatten(0, 1)


def random_positions(maps: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Flat positions (P,) of maps (N, K, H, W) such that `sample` gives about `rows` rows, or all there are."""
    places = maps.shape[2] * maps.shape[3]
    wanted = min(places, max(1, rows // len(maps)))
    return torch.randperm(places, generator=generator)[:wanted].sort().values.to(maps.device)


def least_squares(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The ridge regression from rows (n, C) to rows (n, K): weight (K, C), in the inputs' dtype, and bias (K,).

    The ridge is C / n of the mean diagonal entry, at least RIDGE: the fewer rows, the less they are trusted.
    """
    mean, target_mean = inputs.mean(dim=0), targets.mean(dim=0)
    centred = inputs - mean
    gram = (centred.T @ centred).double()
    moments = (centred.T @ (targets - target_mean)).double()
    diagonal = gram.diagonal()
    diagonal.add_(max(RIDGE, len(gram) / len(inputs)) * diagonal.mean().clamp_min(1e-12))
    weight = torch.cholesky_solve(moments, torch.linalg.cholesky(gram)).T.to(inputs.dtype)
    return weight, target_mean - weight @ mean


def refit_pointwise(conv: Any, norm: Any, inputs: Tensor, targets: Tensor) -> None:
    """Change a 1x1 convolution's weight (K, C), in place, to give targets (n, K) from inputs (n, C).

    The ridge draws towards the weight that it has. The constant goes into the mean of the BatchNorm behind.
    """
    weight = conv.weight.flatten(1)
    change, bias = least_squares(inputs, targets - inputs @ weight.T)
    conv.weight.add_(change[:, :, None, None])
    norm.running_mean.sub_(bias)
