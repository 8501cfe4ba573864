"""Solves ridge regressions between the pixels of feature maps."""

import torch
from torch import Tensor, nn

RIDGE = 1e-2
"""The least ridge, as a share of the mean diagonal entry of the normal equations."""
ROWS = 8192
"""How many positions a refit is fitted on, over all images."""


def energy_error(output: Tensor, target: Tensor) -> float:
    """Return the share of energy |output - target|^2 / |target|^2; 0 where both are zero."""
    return float((output - target).square().sum() / target.square().sum().clamp_min(1e-30))


def sample(maps: Tensor, positions: Tensor) -> Tensor:
    """Return rows (N*P, K) of feature maps (N, K, H, W) at P flat positions (P,), the same of every image."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)[:, positions].flatten(0, 1)


def strided(maps: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return the pixels of maps (N, C, H, W) that the centre of a kernel of this stride meets."""
    return maps[:, :, :: stride[0], :: stride[1]]


def random_positions(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Draw flat positions (P,) of maps (N, K, H, W) such that `sample` gives about ROWS rows, or all there are."""
    places = maps.shape[2] * maps.shape[3]
    wanted = min(places, max(1, ROWS // len(maps)))
    return torch.randperm(places, generator=generator)[:wanted].sort().values.to(maps.device)


def least_squares(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Solve the ridge regression from rows (n, C) to rows (n, K): weight (K, C), in the inputs' dtype, and bias (K,).

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


def scale_and_bias(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Fit scale (K,) and bias (K,) that take each column of rows (n, K) nearest to that of the targets (n, K)."""
    centred = outputs - outputs.mean(dim=0)
    variance, covariance = ((centred * other).mean(dim=0) for other in (centred, targets))
    scale = covariance / variance.clamp_min(1e-30)
    return scale, (targets - scale * outputs).mean(dim=0)


def best_linear(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    """Apply to maps (N, C, H, W) the 1x1 convolution that best gives the targets (n, K, H, W) of the first n."""
    positions = random_positions(targets, generator)
    weight, bias = least_squares(sample(inputs[: len(targets)], positions), sample(targets, positions))
    return nn.functional.conv2d(inputs, weight[:, :, None, None], bias)
