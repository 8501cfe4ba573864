"""Decomposes convolution filters by CP, all filters of a layer in one batch.

Phase 1 of NORTON (Pham, Zniyed, Nguyen, "Enhanced network compression through tensor decompositions and
pruning", IEEE TNNLS 2024): a filter of shape (C, kh, kw) becomes a sum of R outer products of a channel, a
vertical and a horizontal vector,

    W[k, c, i, j]  ~  sum_r  channel[k, c, r] * vertical[k, i, r] * horizontal[k, j, r].

The factors come from alternating least squares (Kolda, Bader, "Tensor decompositions and applications",
SIAM Review 2009, section 3.4). A filter has at most kh*kw linearly independent columns, so a QR decomposition
of its (C, kh*kw) unfolding first leaves a small core with the same optimum (compression before ALS: Bro,
Andersson, 1998); a sweep then costs the same for 3 channels and for 512.

Letters: K filters, C channels, kernel (kh, kw), rank R; B is a batch of runs, several starts for each filter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from norton_det.ops.factors import CPFactors, outer
from norton_det.ops.threads import one_thread

# Sweeps between two looks at which runs have converged; also what every start gets before the best is kept.
_BLOCK = 10
# Added to the diagonal of normal equations whose columns have norm 1 or 0. Far above the rounding of their
# entries, it lets Cholesky succeed on every finite input. It also keeps nearly parallel components from
# growing without bound against each other, which neither float16 nor quantised weights would survive: on real
# filters 1e-12 lets them reach 1,000 times a filter's norm, 1e-6 about 20 times, for a thousandth more error.
_RIDGE = 1e-6

_Sweep = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@one_thread()
def decompose_filters(
    weight: Tensor,
    rank: int,
    *,
    iterations: int = 200,
    tolerance: float = 1e-5,
    starts: int = 4,
    seed: int = 0,
) -> CPFactors:
    """Decompose every filter of a convolution by a rank-R CP decomposition of its own.

    Args:
        weight: (K, C, kh, kw), any floating-point dtype, on any device.
        rank: number of components R. From kh*kw on the result is exact: one component for each spatial position.
        iterations: the most sweeps that a filter gets.
        tolerance: a filter is done when ten sweeps have lowered its squared error by less than this share of
            its squared norm.
        starts: starting points for each filter, the first from its singular vectors, the others random. Each
            gets ten sweeps, the best one goes on.
        seed: seeds the random starting points.

    Returns:
        Factors in the dtype and on the device of `weight`, in the form of `CPFactors.normalised`, detached.
        A zero filter has zero factors.

    Raises:
        ValueError: for a weight of another shape or dtype and a rank or a number of starts below 1; naming the
            filters, where a weight is not finite or its factors overflow the dtype.

    Examples:
        >>> factors = decompose_filters(torch.ones(64, 32, 3, 3), rank=1)
        >>> [tuple(factor.shape) for factor in factors.modes]
        [(64, 32, 1), (64, 3, 1), (64, 3, 1)]
    """
    if weight.ndim != 4 or not weight.is_floating_point():
        raise ValueError(f"expected a floating-point weight (K, C, kh, kw), got {weight.dtype} {tuple(weight.shape)}")
    for name, value in (("rank", rank), ("iterations", iterations), ("starts", starts)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    weight = weight.detach()
    scale = torch.linalg.vector_norm(weight, ord=torch.inf, dim=(1, 2, 3), keepdim=True).double()
    _require_finite(scale, "the weight is not finite")
    filters = weight / scale.where(scale > 0, 1)  # float64 from here on
    if rank >= weight.shape[2] * weight.shape[3]:
        factors = _one_position_a_component(filters, rank)
    else:
        factors = _alternate(filters, rank, iterations, tolerance, starts, seed)
    # Every mode carries a third of the scale, so that no mode alone has to hold it.
    third = scale[:, 0].pow(1 / 3)  # (K, 1, 1)
    factors = CPFactors(*((third * factor).to(weight.dtype) for factor in factors.normalised().modes))
    for factor in factors.modes:
        _require_finite(factor, f"the factors overflow {weight.dtype}")
    return factors


def _one_position_a_component(filters: Tensor, rank: int) -> CPFactors:
    """Return exact factors: component r holds the channels at spatial position r, the surplus is zero."""
    count, _, height, width = filters.shape
    surplus = rank - height * width
    channel = torch.nn.functional.pad(filters.flatten(2), (0, surplus))  # (K, C, R)
    position = torch.arange(height * width, device=filters.device)
    rows = torch.nn.functional.one_hot(position // width, height).mT.double()  # (kh, kh*kw)
    columns = torch.nn.functional.one_hot(position % width, width).mT.double()  # (kw, kh*kw)
    vertical, horizontal = (
        torch.nn.functional.pad(factor, (0, surplus)).repeat(count, 1, 1) for factor in (rows, columns)
    )
    return CPFactors(channel, vertical, horizontal)


def _alternate(filters: Tensor, rank: int, iterations: int, tolerance: float, starts: int, seed: int) -> CPFactors:
    """Return factors by alternating least squares from the best of several starts."""
    unfolded = filters.flatten(2)  # (K, C, kh*kw)
    sweep: _Sweep
    if rank == 1:
        sweep, core = _power_sweep, unfolded.mT @ unfolded  # (K, kh*kw, kh*kw)
        norm = core.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    else:
        sweep, core = _als_sweep, torch.linalg.qr(unfolded, mode="r").R  # (K, min(C, kh*kw), kh*kw)
        norm = torch.linalg.matrix_norm(core, keepdim=True)
    core = core / norm.where(norm > 0, 1)

    trials = [
        _run(sweep, core, vertical, horizontal, min(_BLOCK, iterations), tolerance)
        for vertical, horizontal in _starting_points(core, filters.shape[2:], rank, starts, seed)
    ]
    best = torch.stack([error for _, _, error in trials]).argmin(dim=0)[None, :, None, None]  # (1, K, 1, 1)
    vertical = torch.stack([v for v, _, _ in trials]).take_along_dim(best, dim=0)[0]
    horizontal = torch.stack([h for _, h, _ in trials]).take_along_dim(best, dim=0)[0]
    vertical, horizontal, _ = _run(sweep, core, vertical, horizontal, iterations - _BLOCK, tolerance)
    channel = _solve(unfolded @ outer(vertical, horizontal), _gram(vertical) * _gram(horizontal))
    return CPFactors(channel, vertical, horizontal)


def _starting_points(
    core: Tensor, kernel: torch.Size, rank: int, starts: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Return (vertical (K, kh, R), horizontal (K, kw, R)) for each start.

    The first takes the best rank-1 approximation of each of the R leading (kh, kw) principal components. A
    random one is the same for all filters, so that a filter's factors do not depend on its neighbours.
    """
    gram = core if rank == 1 else core.mT @ core
    leading = torch.linalg.eigh(gram).eigenvectors[:, :, -rank:].mT  # (K, R, kh*kw)
    left, _, right = torch.linalg.svd(leading.reshape(-1, rank, *kernel), full_matrices=False)
    points = [(left[..., 0].mT, right[..., 0, :].mT)]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(starts - 1):
        vertical, horizontal = (
            _unit(torch.randn(1, size, rank, generator=generator, dtype=torch.float64).to(core.device))
            for size in kernel
        )
        points.append((vertical.expand(len(core), -1, -1), horizontal.expand(len(core), -1, -1)))
    return points


def _run(
    sweep: _Sweep, core: Tensor, vertical: Tensor, horizontal: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sweep until converged; return vertical, horizontal and the squared error (B,) of a core of norm 1.

    Runs that have converged leave the batch and stop costing. Sweeps start from extrapolated factors (as in
    Bro's line search): a step grows with every sweep that lowers the error; one that raises it is undone.
    """
    vertical, horizontal = vertical.clone(), horizontal.clone()
    error = core.new_full((len(core),), torch.inf)
    active = torch.arange(len(core), device=core.device)
    for start in range(0, iterations, _BLOCK):
        c, v, h, e = core[active], vertical[active], horizontal[active], error[active]
        before = e
        move_v, move_h, step = torch.zeros_like(v), torch.zeros_like(h), e.new_zeros(len(e), 1, 1)
        for _ in range(min(_BLOCK, iterations - start)):
            next_v, next_h, next_e = sweep(c, v + step * move_v, h + step * move_h)
            better = (next_e <= e)[:, None, None]
            move_v, move_h = torch.where(better, next_v - v, 0), torch.where(better, next_h - h, 0)
            v, h, e = v + move_v, h + move_h, torch.minimum(next_e, e)
            step = torch.where(better, step + 0.5, 0)
        vertical[active], horizontal[active], error[active] = v, h, e
        active = active[before - e > tolerance]
        if len(active) == 0:
            break
    return vertical, horizontal, error


def _als_sweep(core: Tensor, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solve for the channel, the vertical and the horizontal factor in turn; core (B, m, kh*kw)."""
    kernel = (-1, vertical.shape[1], horizontal.shape[1], vertical.shape[2])
    moments = core @ outer(vertical, horizontal)  # (B, m, R)
    channel = _unit(_solve(moments, _gram(vertical) * _gram(horizontal)))
    projected = (core.mT @ channel).view(kernel)  # (B, kh, kw, R)
    moments = (projected * horizontal[:, None]).sum(2)  # (B, kh, R)
    vertical = _unit(_solve(moments, _gram(channel) * _gram(horizontal)))
    moments = (projected * vertical[:, :, None]).sum(1)  # (B, kw, R)
    solution = _solve(moments, _gram(channel) * _gram(vertical))
    # At a least-squares solution the squared error is what the solution does not explain.
    error = core.square().sum((1, 2)) - (moments * solution).sum((1, 2))
    return vertical, _unit(solution), error


def _power_sweep(gram: Tensor, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Do for rank 1 what a least-squares sweep does; gram (B, kh*kw, kh*kw) is that of the unfolding's columns.

    The channel vector is eliminated: the explained energy is the quadratic form of gram at the outer product
    of vertical and horizontal, and a sweep is a power step in each (the higher-order power method).
    """
    kernel = (-1, vertical.shape[1], horizontal.shape[1], 1)
    horizontal = _unit(horizontal)
    image = (gram @ outer(vertical, horizontal)).view(kernel)  # (B, kh, kw, 1)
    vertical = _unit((image * horizontal[:, None]).sum(2))
    image = (gram @ outer(vertical, horizontal)).view(kernel)
    solution = (image * vertical[:, :, None]).sum(1)
    error = gram.diagonal(dim1=1, dim2=2).sum(1) - (solution * horizontal).sum((1, 2))
    return vertical, _unit(solution), error


def _gram(factor: Tensor) -> Tensor:
    """Return the inner products of the columns, (B, R, R)."""
    return factor.mT @ factor


def _solve(moments: Tensor, gram: Tensor) -> Tensor:
    """Return X (B, n, R) with X @ gram = moments; gram (B, R, R) of columns with norm 1 or 0, overwritten.

    It uses Cholesky: batched LU (`torch.linalg.solve`) is unreliable on a CPU with threads (pytorch issue 142815).
    """
    gram.diagonal(dim1=1, dim2=2).add_(_RIDGE)
    root, _ = torch.linalg.cholesky_ex(gram)
    return torch.cholesky_solve(moments.mT, root).mT


def _unit(factor: Tensor) -> Tensor:
    """Scale the columns of (B, n, R) to norm 1; zero columns stay zero."""
    return factor / factor.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-150)


def _require_finite(tensor: Tensor, problem: str) -> None:
    """Raise ValueError, naming the filters, where (K, ...) holds an infinity or a NaN."""
    broken = ~tensor.isfinite().flatten(1).all(dim=1)
    if broken.any():
        raise ValueError(f"{problem} in the filters {broken.nonzero().flatten().tolist()}")
