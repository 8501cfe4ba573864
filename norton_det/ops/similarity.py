"""Computes distances between the filters of a layer in the space of their CP factors, and selects filters by them.

Phase 2 of NORTON (Pham, Zniyed, Nguyen, "Enhanced network compression through tensor decompositions and
pruning", IEEE TNNLS 2024). Letters: K filters, a factor (K, n, R) of n rows (C, kh or kw) and R components, q its
numerical rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from norton_det.ops.factors import CPFactors
from norton_det.ops.threads import one_thread

# Below this sum of squared sines, 1 - cos^2 has lost digits to cancellation and the pair is computed again.
_CLOSE = 1e-6
# Pairs that are computed again at a time, which bounds the memory.
_CHUNK = 4096


@one_thread()
def orthonormal_bases(factor: Tensor, tolerance: float | None = None) -> tuple[Tensor, Tensor]:
    """Return orthonormal bases of the spaces that the columns of each filter's factor span.

    Args:
        factor: (K, n, R).
        tolerance: singular values up to this share of the largest one count as zero. By default R times the
            epsilon of the factor's dtype, which is what rounding alone can make of a zero.

    Returns:
        bases (K, n, q_max), float64, and the numerical ranks q (K,), long. Columns from q on are zero.
    """
    if tolerance is None:
        tolerance = factor.shape[2] * torch.finfo(factor.dtype).eps
    left, values, _ = torch.linalg.svd(factor.detach().double(), full_matrices=False)  # (K, n, m), (K, m)
    spanned = values > tolerance * values[:, :1]
    return left * spanned[:, None], spanned.sum(dim=1)


@one_thread()
def pabs_distances(factors: CPFactors) -> Tensor:
    """Return the angles between the subspaces of two filters' factors, summed over the modes, (K, K) float64.

    For orthonormal bases Qa, Qb and q the larger of their two ranks, a mode adds

        theta = asin( sqrt( (q - ||Qa^T Qb||_F^2) / q ) ),

    the angle whose sine is the root mean square of the sines of the q principal angles: 0 where the subspaces
    are the same, pi/2 where they are orthogonal. At rank 1 it is the paper's distance. Two filters whose
    factors both span all rows of a mode differ by 0 there. The result is symmetric, its diagonal exactly 0.
    """
    return torch.stack([_squared_sines(factor).sqrt().asin() for factor in factors.modes]).sum(dim=0)


@one_thread()
def csa_distances(factors: CPFactors) -> Tensor:
    """Return the paper's cosine alternative as a distance, (K, K) float64: per mode 1 - cos^2(theta), summed.

    theta is the angle of `pabs_distances`.
    """
    return torch.stack([_squared_sines(factor) for factor in factors.modes]).sum(dim=0)


@one_thread()
def vbd_distances(factors: CPFactors) -> Tensor:
    """Return the paper's variance-based distance, (K, K) float64: var(x - y) / (var x + var y).

    x and y are two filters' channel factors, flattened (C*R,), after `CPFactors.normalised` has settled
    the signs, the scales and the order of the components, which CP leaves open. Two constants differ by 0.
    """
    normalised = CPFactors(*(factor.detach().double() for factor in factors.modes)).normalised()
    x = normalised.channel.flatten(1)  # (K, C*R)
    x = x - x.mean(dim=1, keepdim=True)
    energy = x.square().sum(dim=1)
    total = energy[:, None] + energy[None, :]
    difference = (total - 2 * (x @ x.T)).clamp(min=0)
    return _symmetric(difference / total.where(total > 0, 1))


@one_thread()
def greedy_selection(distances: Tensor) -> Tensor:
    """Return the order in which filters are dropped, most redundant first: (K,) long.

    Each step takes the closest pair of the remaining filters and drops the one whose distances to all remaining
    filters have the smaller sum, until a single filter is left, which comes last. To keep n filters, keep the last
    n of the order. Ties: the pair with the lowest indices is taken, and of the two the higher index is dropped.

    Args:
        distances: (K, K), symmetric; the diagonal is ignored.

    Raises:
        ValueError: where distances are not square, not symmetric or not numbers.

    Examples:
        >>> greedy_selection(torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 4.0], [5.0, 4.0, 0.0]]))
        tensor([1, 2, 0])
    """
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or len(distances) == 0:
        raise ValueError(f"expected distances of shape (K, K), K > 0, got {tuple(distances.shape)}")
    if not torch.equal(distances, distances.T):  # a NaN differs from itself
        raise ValueError("expected symmetric distances without NaN, got others")
    count = len(distances)
    remaining = distances.detach().double().cpu().clone()
    sums = remaining.clone().fill_diagonal_(0)  # zero where a filter is gone
    remaining.fill_diagonal_(math.inf)  # infinite where a filter is gone
    nearest, partner = remaining.min(dim=1)

    order: list[int] = []
    alive = torch.ones(count, dtype=torch.bool)
    for _ in range(count - 1):
        first = int(nearest.argmin())
        second = int(partner[first])
        # fsum rounds once, so that equal sums compare as equal whatever was dropped before.
        first_sum, second_sum = (math.fsum(sums[member].tolist()) for member in (first, second))
        dropped = first if first_sum < second_sum else second
        order.append(dropped)
        alive[dropped] = False
        sums[:, dropped] = 0
        remaining[:, dropped] = math.inf
        nearest[dropped] = math.inf
        orphans = ((partner == dropped) & alive).nonzero().flatten()
        nearest[orphans], partner[orphans] = remaining[orphans].min(dim=1)
    order.extend(alive.nonzero().flatten().tolist())
    return torch.tensor(order, dtype=torch.long, device=distances.device)


def _squared_sines(factor: Tensor) -> Tensor:
    """Return the mean squared sine of the principal angles of each pair, (K, K); factor (K, n, R)."""
    bases, ranks = orthonormal_bases(factor)
    count, rows, columns = bases.shape
    stacked = bases.mT.reshape(count * columns, rows)
    cosines = (stacked @ stacked.T).view(count, columns, count, columns)
    larger = torch.maximum(ranks[:, None], ranks[None, :])
    # q - ||Qa^T Qb||_F^2, the sum of the squared sines. Only equal ranks can come close to 0.
    sines = (larger - cosines.square().sum(dim=(1, 3))).clamp(min=0)
    both_full = (ranks[:, None] == rows) & (ranks[None, :] == rows)
    sines = sines.where(~both_full, 0)
    for pairs in ((sines < _CLOSE) & ~both_full).triu(diagonal=1).nonzero().split(_CHUNK):
        a, b = bases[pairs[:, 0]], bases[pairs[:, 1]]
        outside = b - a @ (a.mT @ b)  # what of b's subspace lies outside a's, (pairs, n, q)
        sines[pairs[:, 0], pairs[:, 1]] = outside.square().sum(dim=(1, 2))
    return _symmetric((sines / larger.clamp(min=1)).clamp(max=1))


def _symmetric(distances: Tensor) -> Tensor:
    """Mirror the upper triangle, so that rounding leaves no asymmetry; the diagonal becomes 0."""
    upper = distances.triu(diagonal=1)
    return upper + upper.T
