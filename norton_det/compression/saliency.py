"""Which filters to keep: one score a filter, higher = keep."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from norton_det.layers.cp_conv import CPConv2d
from norton_det.ops.cp import CPFactors
from norton_det.ops.similarity import csa_distances, greedy_selection, pabs_distances, vbd_distances

Criterion = Literal["pabs", "csa", "vbd"]
DISTANCES: dict[str, Callable[[CPFactors], Tensor]] = {
    "pabs": pabs_distances,
    "csa": csa_distances,
    "vbd": vbd_distances,
}


def group_scores(members: list[tuple[nn.Module, nn.Module]], criterion: Criterion = "pabs") -> Tensor:
    """Scores (K,) of K channels that several (convolution, BatchNorm) pairs produce together.

    Each member's scores are divided by their own mean before they are averaged, so that no member outweighs
    another. Raises ValueError for an unknown criterion.
    """
    scores = torch.stack([filter_scores(conv, norm, criterion) for conv, norm in members])
    return (scores / scores.mean(dim=1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)).mean(dim=0)


def filter_scores(conv: nn.Module, norm: nn.Module, criterion: Criterion = "pabs") -> Tensor:
    """Scores (K,) of the filters of one convolution.

    A CP convolution is ranked by similarity in factor space (paper, section III-B): the score of a filter is the
    step at which greedy selection drops it. A dense one is ranked by the L2 norm of each filter times what its
    BatchNorm makes of it, |gamma| / sqrt(running_var + eps).
    """
    if criterion not in DISTANCES:
        raise ValueError(f"criterion {criterion!r} is not one of {', '.join(DISTANCES)}")
    if isinstance(conv, CPConv2d):
        removal_order = greedy_selection(DISTANCES[criterion](conv.factors))
        steps = torch.arange(len(removal_order), dtype=torch.float64, device=removal_order.device)
        return torch.empty_like(steps).scatter_(0, removal_order, steps)
    weight, gamma = conv.weight, norm.weight
    assert isinstance(weight, Tensor) and isinstance(gamma, Tensor)
    assert isinstance(norm.running_var, Tensor) and isinstance(norm.eps, float)
    scale = gamma.detach().abs() / torch.sqrt(norm.running_var + norm.eps)
    scores: Tensor = torch.linalg.vector_norm(weight.detach().flatten(1), dim=1).double() * scale.double()
    return scores


def kept_filters(scores: Tensor, count: int) -> Tensor:
    """Indices (count,), ascending, of the highest scores (K,); among equals the lower index stays."""
    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values
