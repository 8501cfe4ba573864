"""Scores filters to choose which to keep: one score for each, higher means keep."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from norton_det.layers.cp_conv import CPConv2d
from norton_det.ops.factors import CPFactors
from norton_det.ops.similarity import csa_distances, greedy_selection, pabs_distances, vbd_distances

Criterion = Literal["pabs", "csa", "vbd", "deviation"]
DISTANCES: dict[str, Callable[[CPFactors], Tensor]] = {
    "pabs": pabs_distances,
    "csa": csa_distances,
    "vbd": vbd_distances,
}


def group_scores(members: list[tuple[nn.Module, nn.Module]], criterion: Criterion = "pabs") -> Tensor:
    """Score the K channels that the (convolution, BatchNorm) pairs `members` produce, alone or as a sum: (K,).

    A CP convolution that alone produces its channels is ranked by similarity in factor space (paper, section III-B):
    the score of a filter is the step at which greedy selection drops it. All others, and sums, are ranked by
    `rectified_deviation`; `deviation` ranks CP convolutions by it too. Raises ValueError for an unknown criterion.
    """
    if criterion not in get_args(Criterion):
        raise ValueError(f"criterion {criterion!r} is not one of {', '.join(get_args(Criterion))}")
    (conv, _), *others = members
    if not others and isinstance(conv, CPConv2d) and criterion in DISTANCES:
        removal_order = greedy_selection(DISTANCES[criterion](conv.factors))
        steps = torch.arange(len(removal_order), dtype=torch.float64, device=removal_order.device)
        return torch.empty_like(steps).scatter_(0, removal_order, steps)
    return rectified_deviation([norm for _, norm in members])


def rectified_deviation(norms: list[nn.Module]) -> Tensor:
    """Return each channel's standard deviation (K,) in relu(sum of the norms' outputs), told from their parameters.

    BatchNorm gives channel k the mean beta_k and the standard deviation |gamma_k|. Taken as independent and normal,
    the sum x has mean m = sum of beta and variance s^2 = sum of gamma^2, and with t = m / s, the standard normal's
    density phi and distribution Phi

        E[relu(x)]   = m Phi(t) + s phi(t)
        E[relu(x)^2] = (m^2 + s^2) Phi(t) + m s phi(t)

    A channel that hardly varies can be dropped: what is left of it is a constant.
    """
    mean = torch.stack([_parameter(norm, "bias") for norm in norms]).sum(dim=0)
    deviation = torch.stack([_parameter(norm, "weight") for norm in norms]).square().sum(dim=0).sqrt()
    t = mean / deviation.clamp_min(torch.finfo(deviation.dtype).tiny)
    density, below = torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi), torch.special.ndtr(t)
    first = mean * below + deviation * density
    second = (mean.square() + deviation.square()) * below + mean * deviation * density
    spread: Tensor = (second - first.square()).clamp_min(0).sqrt()
    return spread


def _parameter(norm: nn.Module, name: str) -> Tensor:
    return norm.get_parameter(name).detach().double()


def kept_filters(scores: Tensor, count: int) -> Tensor:
    """Return the indices (count,), ascending, of the highest scores (K,); among equals the lower index stays.

    Examples:
        >>> kept_filters(torch.tensor([3, 1, 2, 1]), 3)
        tensor([0, 1, 2])
    """
    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values
