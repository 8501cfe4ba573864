import warnings

import pytest
import tensorly
import torch
from tensorly.decomposition import parafac
from torch import Tensor

from norton_det.ops.cp import decompose_filters
from norton_det.ops.factors import CPFactors, nmse, reconstruct, relative_error

SHAPES = [(6, 5, 3, 3), (4, 2, 3, 3), (3, 16, 5, 1), (3, 1, 3, 3), (2, 3, 7, 7), (5, 4, 1, 1)]


def random_filters(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact_filters(count: int, channels: int, rank: int, seed: int = 0) -> Tensor:
    """Filters of CP rank `rank` at most, float64."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (channels, 3, 3)
    factors = (torch.randn(count, n, rank, generator=generator, dtype=torch.float64) for n in sizes)
    return reconstruct(CPFactors(*factors))


def parafac_best(filters: Tensor, rank: int) -> list[float]:
    """The lowest squared error of TensorLy over its own start and three random ones, for each filter."""
    best = []
    for tensor in filters.double().numpy():
        errors = []
        for init, seed in (("svd", 0), ("random", 0), ("random", 1), ("random", 2)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its start has fewer singular vectors than components
                cp = parafac(tensor, rank, init=init, random_state=seed)
            errors.append(float(((tensor - tensorly.cp_to_tensor(cp)) ** 2).sum()))
        best.append(min(errors))
    return best


def test_reconstruct_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    channel, vertical, horizontal = (torch.randn(4, n, 3, generator=generator) for n in (5, 3, 2))
    expected = torch.zeros(4, 5, 3, 2)
    for k in range(4):
        for r in range(3):
            expected[k] += torch.einsum("c,i,j->cij", channel[k, :, r], vertical[k, :, r], horizontal[k, :, r])
    torch.testing.assert_close(reconstruct(CPFactors(channel, vertical, horizontal)), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 4, 60])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_shapes_and_dtype(shape, rank, dtype):
    weight = random_filters(*shape).to(dtype)
    factors = decompose_filters(weight, rank)
    filters, channels, height, width = shape
    assert factors.channel.shape == (filters, channels, rank)
    assert factors.vertical.shape == (filters, height, rank)
    assert factors.horizontal.shape == (filters, width, rank)
    assert {factor.dtype for factor in factors.modes} == {dtype}
    assert (factors.rank, factors.filters) == (rank, filters)
    assert (relative_error(weight, factors) <= 1).all()


@pytest.mark.parametrize("rank", [1, 2, 3, 6])
def test_no_worse_than_tensorly_on_random_filters(rank):
    weight = random_filters(8, 12, 3, 3)
    ours = nmse(weight, reconstruct(decompose_filters(weight, rank)))
    theirs = sum(parafac_best(weight, rank)) / weight.double().square().sum().item()
    assert ours <= theirs * 1.001


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("layer", ["layer1.1.conv2.weight", "layer3.4.conv2.weight"])
def test_no_worse_than_tensorly_on_real_filters(real_filters, layer, rank):
    weight = real_filters[layer]
    sample = torch.linspace(0, len(weight) - 1, 10).long()
    factors = decompose_filters(weight, rank).select(sample)
    theirs = sum(parafac_best(weight[sample], rank)) / weight[sample].double().square().sum().item()
    assert nmse(weight[sample], reconstruct(factors)) <= theirs * 1.001


def test_rank_one_is_the_best_of_a_dense_search():
    weight = random_filters(5, 4, 2, 2).double()
    angle = torch.linspace(0, torch.pi, 721, dtype=torch.float64)
    vectors = torch.stack([angle.cos(), angle.sin()])  # every direction in the plane
    explained = torch.einsum("kcij,ia,jb->kcab", weight, vectors, vectors).square().sum(1).amax((1, 2))
    best = 1 - explained / weight.square().sum((1, 2, 3))
    error = relative_error(weight, decompose_filters(weight, 1, starts=8))
    assert (error <= best + 1e-9).all()
    torch.testing.assert_close(error, best, rtol=0, atol=1e-4)


def test_error_falls_with_rank_and_ends_at_zero():
    weight = random_filters(6, 20, 3, 3)
    errors = torch.stack([relative_error(weight, decompose_filters(weight, rank)) for rank in range(1, 10)])
    assert (errors.diff(dim=0) < 0).all()
    assert errors[-1].max() < 1e-12


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_recovers_filters_of_that_rank_or_less(rank):
    weight = exact_filters(6, 10, min(rank, 3))
    assert relative_error(weight, decompose_filters(weight, rank, iterations=2000, tolerance=0)).max() < 1e-6


def test_zero_filters_are_zero_and_change_no_other():
    weight = random_filters(5, 6, 3, 3)
    expected = decompose_filters(weight, 2)
    weight[[1, 3]] = 0
    factors = decompose_filters(weight, 2)
    error = relative_error(weight, factors)
    assert (error[[1, 3]] == 0).all()
    for factor, before in zip(factors.modes, expected.modes, strict=True):
        assert (factor[[1, 3]] == 0).all()
        torch.testing.assert_close(factor[[0, 2, 4]], before[[0, 2, 4]])
    assert nmse(torch.zeros(2, 6, 3, 3), torch.zeros(2, 6, 3, 3)) == 0


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_sparse_filters(rank):
    weight = torch.zeros(4, 6, 3, 3)
    weight[0, 2, 1, 1] = 3  # one entry
    weight[1, :, 0, 2] = 1  # one position
    weight[2, 5] = 1  # one channel, all the same
    weight[3, 0] = torch.eye(3) * 1e-20
    factors = decompose_filters(weight, rank)
    assert all(factor.isfinite().all() for factor in factors.modes)
    assert relative_error(weight, factors)[:3].max() < 1e-9
    # A diagonal matrix of rank 3 keeps 1/3 of its energy a component.
    assert relative_error(weight, factors)[3] == pytest.approx(max(0, 1 - rank / 3), abs=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_names_the_filters_that_are_not_finite(value):
    weight = random_filters(6, 4, 3, 3)
    weight[2, 0, 0, 0] = value
    weight[5, 3, 2, 1] = value
    with pytest.raises(ValueError, match=r"\[2, 5\]"):
        decompose_filters(weight, 2)


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (torch.zeros(3, 4), {"rank": 1}, r"\(3, 4\)"),
        (torch.zeros(3, 4, 3, 3, dtype=torch.long), {"rank": 1}, "int64"),
        (torch.zeros(3, 4, 3, 3), {"rank": 0}, "rank must be at least 1, got 0"),
        (torch.zeros(3, 4, 3, 3), {"rank": 1, "starts": 0}, "starts"),
    ],
)
def test_rejects(weight, options, message):
    with pytest.raises(ValueError, match=message):
        decompose_filters(weight, **options)


@pytest.mark.parametrize("rank", [1, 3])
def test_same_seed_same_factors(rank):
    weight = random_filters(7, 6, 3, 3)
    torch.manual_seed(1)
    first = decompose_filters(weight, rank, seed=5)
    state = torch.get_rng_state()
    second = decompose_filters(weight, rank, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.modes, second.modes, strict=True):
        assert torch.equal(a, b)


def test_another_seed_starts_elsewhere():
    weight = random_filters(40, 3, 3, 3)
    first, other = (decompose_filters(weight, 3, iterations=1, starts=8, seed=seed) for seed in (5, 6))
    assert not torch.equal(first.channel, other.channel)


def test_factors_are_detached():
    weight = random_filters(3, 4, 3, 3).requires_grad_()
    assert not any(factor.requires_grad for factor in decompose_filters(weight, 2).modes)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_filter_does_not_depend_on_its_neighbours(rank):
    weight = random_filters(9, 6, 3, 3).double()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    whole = decompose_filters(weight, rank).select(order)
    for a, b in zip(whole.modes, decompose_filters(weight[order], rank).modes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30, -1.0])
@pytest.mark.parametrize("rank", [1, 3])
def test_scale_equivariance(scale, rank):
    weight = random_filters(5, 6, 3, 3)
    factors, scaled = decompose_filters(weight, rank), decompose_filters(weight * scale, rank)
    torch.testing.assert_close(reconstruct(scaled) / scale, reconstruct(factors), rtol=1e-4, atol=1e-4)


def test_channel_permutation_equivariance():
    weight = random_filters(5, 8, 3, 3).double()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    factors, permuted = decompose_filters(weight, 2), decompose_filters(weight[:, order], 2)
    torch.testing.assert_close(permuted.channel, factors.channel[:, order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(permuted.vertical, factors.vertical, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 9])
def test_factors_are_balanced_sorted_and_signed(rank):
    factors = decompose_filters(random_filters(6, 7, 3, 3), rank)
    norms = torch.stack([factor.norm(dim=1) for factor in factors.modes])  # (3, K, R)
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))
    assert (norms[0].diff(dim=1) <= 1e-6).all()
    for factor in (factors.vertical, factors.horizontal):
        assert torch.equal(factor.abs().amax(dim=1), factor.amax(dim=1))


def test_normalised_keeps_the_filters():
    generator = torch.Generator().manual_seed(0)
    factors = CPFactors(*(torch.randn(4, n, 3, generator=generator) for n in (5, 3, 3)))
    torch.testing.assert_close(reconstruct(factors.normalised()), reconstruct(factors))


def test_normalised_scales_with_the_filters():
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(4, n, 3, generator=generator) for n in (5, 3, 3)]
    expected = CPFactors(*factors).normalised()
    small = CPFactors(*(1e-6 * factor for factor in factors)).normalised()
    for factor, wanted in zip(small.modes, expected.modes, strict=True):
        torch.testing.assert_close(factor * 1e6, wanted)


def test_components_stay_bounded_where_no_best_ones_exist():
    """a a b + a b a + b a a is of rank 3 and the limit of tensors of rank 2, whose components grow without bound."""
    a, b = torch.eye(3, dtype=torch.float64)[:2]
    weight = sum(torch.einsum("c,i,j->cij", *modes) for modes in ((a, a, b), (a, b, a), (b, a, a)))[None]
    size = decompose_filters(weight, 2, tolerance=0).channel.norm(dim=1).pow(3)
    assert size.max() < 6 * weight.norm()


def test_components_stay_bounded_on_real_filters(real_filters):
    weight = real_filters["layer1.2.conv2.weight"]
    size = decompose_filters(weight, 3).channel.norm(dim=1).pow(3).amax(dim=1)
    assert (size / weight.flatten(1).norm(dim=1)).max() < 30


def test_relative_error_by_hand():
    weight = random_filters(3, 4, 3, 3)
    factors = decompose_filters(weight, 1)
    difference = weight.double() - reconstruct(factors).double()
    expected = difference.flatten(1).norm(dim=1) ** 2 / weight.double().flatten(1).norm(dim=1) ** 2
    torch.testing.assert_close(relative_error(weight, factors), expected, rtol=1e-5, atol=0)
    assert nmse(weight, reconstruct(factors)) == pytest.approx(
        (difference.norm() ** 2 / weight.double().norm() ** 2).item(), rel=1e-5
    )
    with pytest.raises(ValueError, match="do not fit"):
        relative_error(weight[:, :3], factors)


def test_factors_of_unequal_shapes_are_rejected():
    with pytest.raises(ValueError, match=r"\(4, 3, 1\)"):
        CPFactors(torch.zeros(4, 5, 2), torch.zeros(4, 3, 1), torch.zeros(4, 3, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rank", [1, 3])
def test_gpu_gives_the_same(rank):
    weight = random_filters(6, 8, 3, 3)
    factors = decompose_filters(weight.cuda(), rank)
    assert factors.channel.is_cuda
    torch.testing.assert_close(
        reconstruct(factors).cpu(), reconstruct(decompose_filters(weight, rank)), rtol=1e-4, atol=1e-4
    )
