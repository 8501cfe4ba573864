import math
from itertools import combinations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from norton_det.ops.cp import decompose_filters
from norton_det.ops.factors import CPFactors
from norton_det.ops.similarity import (
    csa_distances,
    greedy_selection,
    orthonormal_bases,
    pabs_distances,
    vbd_distances,
)


def random_factors(filters: int, rank: int, sizes: tuple[int, int, int] = (12, 3, 3), seed: int = 0) -> CPFactors:
    generator = torch.Generator().manual_seed(seed)
    return CPFactors(*(torch.randn(filters, n, rank, generator=generator).double() for n in sizes))


def mean_square_sine(a: Tensor, b: Tensor) -> float:
    """By SciPy, for two matrices of full and equal column rank."""
    return float(np.mean(np.sin(scipy.linalg.subspace_angles(a.numpy(), b.numpy())) ** 2))


def scipy_distances(factors: CPFactors, of_mean_square_sine) -> Tensor:
    distances = torch.zeros(factors.filters, factors.filters, dtype=torch.float64)
    for a, b in combinations(range(factors.filters), 2):
        distances[a, b] = sum(of_mean_square_sine(mean_square_sine(factor[a], factor[b])) for factor in factors.modes)
    return distances + distances.T


def greedy_by_definition(distances: Tensor) -> list[int]:
    remaining, order = list(range(len(distances))), []
    while len(remaining) > 1:
        a, b = min(combinations(remaining, 2), key=lambda pair: (distances[pair].item(), pair))
        total_a, total_b = (math.fsum(distances[i, k].item() for k in remaining if k != i) for i in (a, b))
        order.append(a if total_a < total_b else b)
        remaining.remove(order[-1])
    return order + remaining


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_pabs_is_scipys_angle(rank):
    factors = random_factors(8, rank)
    expected = scipy_distances(factors, lambda square: math.asin(math.sqrt(square)))
    torch.testing.assert_close(pabs_distances(factors), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("rank", [1, 2])
def test_csa_is_scipys_angle(rank):
    factors = random_factors(8, rank)
    torch.testing.assert_close(
        csa_distances(factors), scipy_distances(factors, lambda square: square), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("angle", [1e-2, 1e-5, 1e-9, 1e-12])
@pytest.mark.parametrize("rank", [1, 2])
def test_small_angles_keep_their_digits(angle, rank):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(20, 2 * rank, generator=generator, dtype=torch.float64)).Q
    turned = math.cos(angle) * basis[:, :rank] + math.sin(angle) * basis[:, rank:]  # every principal angle
    channel = torch.stack([basis[:, :rank], turned])
    same = torch.eye(3, rank, dtype=torch.float64).expand(2, 3, rank)
    distance = pabs_distances(CPFactors(channel, same, same))[0, 1].item()
    assert distance == pytest.approx(angle, rel=1e-3)


def test_close_pairs_keep_their_digits_however_many_they_are():
    angles = 1e-9 * torch.arange(100, dtype=torch.float64)  # 4,950 pairs
    channel = torch.stack([angles.cos(), angles.sin()], dim=1)[:, :, None]
    same = torch.ones(100, 1, 1, dtype=torch.float64)
    expected = (angles[:, None] - angles[None]).abs()
    torch.testing.assert_close(pabs_distances(CPFactors(channel, same, same)), expected, rtol=1e-4, atol=1e-15)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_orthogonal_filters_are_half_pi_apart_in_the_channel_mode(rank):
    channel = torch.eye(3 * rank).view(3 * rank, 3, rank).permute(1, 0, 2)  # (K, C, R): disjoint channels
    spatial = torch.eye(3, rank).expand(3, 3, rank)
    distances = pabs_distances(CPFactors(channel, spatial, spatial))
    expected = math.pi / 2 * (1 - torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(distances, expected)


def test_orthogonal_in_every_mode():
    basis = torch.eye(3)[:, :, None]  # (K, n, 1)
    distances = pabs_distances(CPFactors(basis, basis, basis))
    torch.testing.assert_close(distances, 1.5 * math.pi * (1 - torch.eye(3, dtype=torch.float64)))


@pytest.mark.parametrize("rank", [2, 3])
def test_angles_do_not_saturate(rank):
    channel = pabs_distances(random_factors(40, rank, sizes=(64, 3, 3)))
    upper = channel[tuple(torch.triu_indices(40, 40, offset=1))]
    assert upper.unique().numel() == upper.numel()
    assert upper.max() < math.pi / 2 + (2 if rank == 2 else 0) * math.pi / 2


@pytest.mark.parametrize("distances", [pabs_distances, csa_distances, vbd_distances])
@pytest.mark.parametrize("rank", [1, 3])
def test_symmetric_with_zero_diagonal(distances, rank):
    result = distances(random_factors(30, rank))
    assert result.dtype == torch.float64
    assert torch.equal(result, result.T)
    assert (result.diagonal() == 0).all()
    assert (result + torch.eye(30) > 0).all()


@pytest.mark.parametrize("distances", [pabs_distances, csa_distances, vbd_distances])
def test_scaled_or_reordered_components_change_nothing(distances):
    factors = random_factors(10, 2)
    scales = torch.rand(10, 1, 2, dtype=torch.float64) + 0.5
    other = CPFactors(
        *(factor.flip(2) for factor in (factors.channel * -scales, factors.vertical / scales, -factors.horizontal))
    )
    torch.testing.assert_close(distances(other), distances(factors), rtol=0, atol=1e-7)


@pytest.mark.parametrize("distances", [pabs_distances, csa_distances, vbd_distances])
def test_filter_permutation_equivariance(distances):
    factors = random_factors(12, 2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(distances(factors.select(order)), distances(factors)[order][:, order])


def test_full_spatial_modes_say_nothing():
    factors = random_factors(6, 3)
    other = CPFactors(factors.channel, *random_factors(6, 3, seed=1).modes[1:])
    assert torch.equal(pabs_distances(factors), pabs_distances(other))


def test_the_larger_rank_counts():
    flat = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])  # rank 1: the first axis
    plane = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])  # rank 2, holds that axis
    same = torch.eye(3)[:, :2].expand(2, 3, 2)
    distances = pabs_distances(CPFactors(torch.stack([flat, plane]), same, same))
    assert distances[0, 1].item() == pytest.approx(math.asin(math.sqrt((2 - 1) / 2)))


def test_equal_and_zero_filters():
    factors = random_factors(6, 2)
    channel = factors.channel.clone()
    channel[1], channel[4], channel[5] = channel[0], 0, 0
    spatial = [factor[:1].expand(6, -1, -1) for factor in factors.modes[1:]]
    for distances in (pabs_distances, csa_distances, vbd_distances):
        result = distances(CPFactors(channel, *spatial))
        assert result.isfinite().all()
        assert result[0, 1] < 1e-12
        assert result[4, 5] < 1e-12
        assert result[0, 4] > 0.5


def test_bases_span_the_factor():
    factor = random_factors(5, 3).channel
    factor[2, :, 2] = factor[2, :, 0] - 2 * factor[2, :, 1]
    factor[3] = 0
    for dtype in (torch.float32, torch.float64):
        bases, ranks = orthonormal_bases(factor.to(dtype))
        assert ranks.tolist() == [3, 3, 2, 0, 3]
        for matrix, basis, rank in zip(factor.to(dtype).double(), bases, ranks, strict=True):
            torch.testing.assert_close(basis.mT @ basis, (torch.arange(3) < rank).double().diag())
            torch.testing.assert_close(basis @ (basis.mT @ matrix), matrix, rtol=0, atol=1e-5)
    assert orthonormal_bases(factor, tolerance=0.999)[1].tolist() == [1, 1, 1, 0, 1]


def test_vbd_by_hand():
    factors = random_factors(7, 2)
    x = factors.normalised().channel.flatten(1)
    expected = (x[:, None] - x[None]).var(dim=2) / (x.var(dim=1)[:, None] + x.var(dim=1)[None])
    torch.testing.assert_close(vbd_distances(factors), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_real_filters_have_distinct_distances(real_filters, rank):
    weight = real_filters["layer3.2.conv2.weight"]
    distances = pabs_distances(decompose_filters(weight, rank))
    upper = distances[tuple(torch.triu_indices(len(weight), len(weight), offset=1))]
    assert upper.unique().numel() >= upper.numel() - 5
    assert (upper > 1e-6).all()
    assert distances.isfinite().all()


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_its_definition(seed):
    distances = torch.rand(25, 25, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    distances = distances + distances.T
    assert greedy_selection(distances).tolist() == greedy_by_definition(distances)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_settles_ties_as_defined(seed):
    distances = torch.randint(1, 4, (20, 20), generator=torch.Generator().manual_seed(seed)).triu(1).double() / 10
    distances = distances + distances.T
    assert greedy_selection(distances).tolist() == greedy_by_definition(distances)


def test_greedy_on_real_filters(real_filters):
    distances = pabs_distances(decompose_filters(real_filters["layer1.0.conv2.weight"], 1))
    order = greedy_selection(distances)
    assert order.tolist() == greedy_by_definition(distances)
    assert sorted(order.tolist()) == list(range(64))


def test_greedy_by_hand():
    # 0 and 1 lie together, 2 near them, 3 far away: 1 goes first (it is nearer to the rest), 3 stays longest.
    position = torch.tensor([0.0, 0.1, 1.0, 5.0])
    distances = (position[:, None] - position[None]).abs()
    order = greedy_selection(distances)
    assert order.tolist()[0] == 1
    assert order.dtype == torch.long
    assert greedy_selection(torch.zeros(4, 4)).tolist() == [1, 2, 3, 0]


def test_greedy_of_one():
    assert greedy_selection(torch.zeros(1, 1)).tolist() == [0]


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (torch.zeros(3, 4), r"\(3, 4\)"),
        (torch.zeros(0, 0), r"\(0, 0\)"),
        (torch.arange(9.0).view(3, 3), "symmetric"),
        (torch.full((3, 3), torch.nan), "NaN"),
    ],
)
def test_greedy_rejects(distances, message):
    with pytest.raises(ValueError, match=message):
        greedy_selection(distances)
