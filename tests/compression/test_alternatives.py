import warnings

import pytest
import tensorly
import torch
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor, nn

from norton_det.compression.alternatives import (
    ALTERNATIVES,
    composed_weight,
    layer_cp,
    layer_tucker2,
    matrix_svd,
    spatial_svd,
    tucker_ranks,
)
from norton_det.compression.comparison import FILTER_WISE, METHODS, compare_decompositions
from norton_det.layers.cp_conv import CPConv2d

BUILDERS = {
    "layer_cp": lambda conv: layer_cp(conv, 7),
    "layer_tucker2": lambda conv: layer_tucker2(conv, (4, 5)),
    "matrix_svd": lambda conv: matrix_svd(conv, 5),
    "spatial_svd": lambda conv: spatial_svd(conv, 5),
}


def random_conv(
    channels: int = 6, filters: int = 8, kernel: tuple[int, int] = (3, 3), seed: int = 0, **options
) -> nn.Conv2d:
    conv = nn.Conv2d(channels, filters, kernel, bias=False, **options).double()
    generator = torch.Generator().manual_seed(seed)
    conv.weight = nn.Parameter(torch.randn(conv.weight.shape, generator=generator, dtype=torch.float64))
    return conv


def nmse(weight: Tensor, rebuilt: Tensor) -> float:
    return ((weight - rebuilt).square().sum() / weight.square().sum()).item()


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 1, "padding": 1},
        {"stride": 2, "padding": 1},
        {"stride": (2, 1), "padding": (0, 2), "kernel": (3, 5)},
        {"stride": 1, "padding": 2, "dilation": 2, "filters": 5},
    ],
)
def test_the_layers_compute_the_convolution_with_the_composed_weight(builder, options):
    conv = random_conv(**options)
    layers = BUILDERS[builder](conv)
    image = torch.randn(2, 6, 9, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.nn.functional.conv2d(
        image, composed_weight(layers), None, conv.stride, conv.padding, conv.dilation
    )
    torch.testing.assert_close(layers(image), expected)
    assert composed_weight(layers).shape == conv.weight.shape
    assert not any(name.endswith("bias") for name, _ in layers.named_parameters())


def test_layer_cp_is_the_tensor_of_its_factors_and_no_worse_than_plain_als():
    conv = random_conv()
    channel, vertical, horizontal, output = (part.weight.detach().squeeze() for part in layer_cp(conv, 7))
    factors = [output.numpy(), channel.T.numpy(), vertical.T.numpy(), horizontal.T.numpy()]
    expected = torch.from_numpy(tensorly.cp_to_tensor((None, factors)))
    torch.testing.assert_close(composed_weight(layer_cp(conv, 7)), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its start has fewer singular vectors than components
        theirs = parafac(conv.weight.detach().numpy(), 7, n_iter_max=50, random_state=0)
    assert nmse(conv.weight, expected) <= 1.01 * nmse(conv.weight, torch.from_numpy(tensorly.cp_to_tensor(theirs)))


def test_layer_tucker2_is_tensorlys():
    conv = random_conv()
    theirs, _ = partial_tucker(conv.weight.detach().numpy(), rank=[5, 4], modes=[0, 1], tol=1e-4)
    expected = tensorly.tenalg.multi_mode_dot(theirs[0], theirs[1], modes=[0, 1])
    torch.testing.assert_close(composed_weight(layer_tucker2(conv, (4, 5))), torch.from_numpy(expected))


def test_an_svd_loses_the_singular_values_it_drops():
    conv = random_conv()
    total = conv.weight.square().sum()
    rows = torch.linalg.svdvals(conv.weight.reshape(8, 54))
    torch.testing.assert_close(
        nmse(conv.weight, composed_weight(matrix_svd(conv, 3))), (rows[3:].square().sum() / total).item()
    )
    blocks = [[conv.weight[k, c] for k in range(8)] for c in range(6)]  # (C, K) blocks of (kh, kw)
    spatial = torch.linalg.svdvals(torch.cat([torch.cat(row, dim=1) for row in blocks]))
    torch.testing.assert_close(
        nmse(conv.weight, composed_weight(spatial_svd(conv, 3))), (spatial[3:].square().sum() / total).item()
    )


@pytest.mark.parametrize("method", ALTERNATIVES)
def test_error_falls_with_rank(method):
    conv = random_conv()
    errors = torch.tensor(
        [nmse(conv.weight, composed_weight(ALTERNATIVES[method].decompose(conv, rank))) for rank in (1, 2, 4, 6, 8)]
    )
    assert (errors.diff() < 0).all()
    assert errors[0] < 1


@pytest.mark.parametrize("method", ["layer-wise Tucker-2", "matrix SVD", "spatial SVD"])
@pytest.mark.parametrize("filters", [4, 6, 8])
def test_the_highest_rank_is_exact(method, filters):
    conv = random_conv(filters=filters)
    layers = ALTERNATIVES[method].decompose(conv, ALTERNATIVES[method].highest(tuple(conv.weight.shape)))
    torch.testing.assert_close(composed_weight(layers), conv.weight.detach())


@pytest.mark.parametrize("method", ALTERNATIVES)
@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("filters", [5, 6, 8])
def test_parameters_are_those_of_the_layers(method, rank, filters):
    conv = random_conv(filters=filters, kernel=(3, 5))
    layers = ALTERNATIVES[method].decompose(conv, min(rank, filters))
    counted = sum(parameter.numel() for parameter in layers.parameters())
    assert ALTERNATIVES[method].parameters(tuple(conv.weight.shape), min(rank, filters)) == counted


@pytest.mark.parametrize(("method", "rank"), [("layer-wise CP", 134), ("matrix SVD", 28), ("spatial SVD", 47)])
def test_nearest_rank_by_hand(method, rank):
    # 17,920 parameters, four components a filter: over 64 + 64 + 3 + 3, 64 + 576 and 2 * 192 a component.
    assert ALTERNATIVES[method].nearest_rank((64, 64, 3, 3), 4 * 64 * 70) == rank
    assert ALTERNATIVES[method].nearest_rank((64, 64, 3, 3), 1) == 1


def test_tucker_ranks_keep_the_ratio_of_the_channels():
    assert tucker_ranks((64, 32, 3, 3), 20) == (10, 20)
    assert tucker_ranks((32, 64, 3, 3), 1) == (1, 1)
    # 2 * 64 * 38 + 9 * 38^2 = 17,860; a rank more would cost 18,681
    assert ALTERNATIVES["layer-wise Tucker-2"].nearest_rank((64, 64, 3, 3), 4 * 64 * 70) == 38


def test_compare_measures_every_method_at_every_rank():
    conv = random_conv(16, 16, padding=1, stride=2).float()
    image = torch.randn(1, 16, 10, 10)
    decomposed = []
    measurements = compare_decompositions(conv, [1, 2], image, runs=1, progress=lambda: decomposed.append(1))
    assert [m.method for m in measurements] == ["dense", *METHODS[1:], *METHODS[1:]]
    assert len(decomposed) == 10
    dense, ours = measurements[0], measurements[6]
    assert (dense.parameters, dense.macs, dense.nmse, dense.sub_layers) == (16 * 16 * 9, 16 * 16 * 9 * 25, 0, 1)
    assert (ours.method, ours.ranks, ours.parameters, ours.sub_layers) == (FILTER_WISE, (2,), 2 * 16 * 22, 2)
    assert ours.macs == 2 * 16 * (16 * 100 + 3 * 50 + 3 * 25)
    assert ours.macs_as_run == 2 * 16 * (16 * 100 + 9 * 25)
    assert ours.nmse == pytest.approx(nmse(conv.weight, CPConv2d.from_conv(conv, 2).weight))
    layer_wise = measurements[7]
    (rank,) = layer_wise.ranks
    assert (layer_wise.sub_layers, layer_wise.parameters) == (4, rank * 38)
    assert layer_wise.macs == layer_wise.macs_as_run == rank * (16 * 100 + 3 * 50 + 3 * 25 + 16 * 25)
    assert all(0 < m.nmse < 1 and m.latency_ms > 0 for m in measurements[1:])
    [svd] = (m for m in measurements[6:] if m.method == "matrix SVD")
    values = torch.linalg.svdvals(conv.weight.flatten(1)).square()
    assert svd.nmse == pytest.approx((values[svd.ranks[0] :].sum() / values.sum()).item(), rel=1e-4)


@pytest.mark.parametrize("builder", [layer_cp, matrix_svd, spatial_svd])
def test_rejects_ranks(builder):
    with pytest.raises(ValueError, match="rank must be at least 1"):
        builder(random_conv(), 0)


def test_rejects_what_it_would_not_reproduce():
    with pytest.raises(ValueError, match="at most 8, got 9"):
        matrix_svd(random_conv(), 9)
    with pytest.raises(ValueError, match="at most 6, got 7"):
        layer_tucker2(random_conv(), (7, 8))
    with pytest.raises(ValueError, match="groups=2"):
        matrix_svd(nn.Conv2d(4, 4, 3, groups=2, bias=False), 1)
    with pytest.raises(ValueError, match="without bias"):
        spatial_svd(nn.Conv2d(4, 4, 3), 1)
    with pytest.raises(ValueError, match="padding=same"):
        layer_cp(nn.Conv2d(4, 4, 3, padding="same", bias=False), 1)
    with pytest.raises(ValueError, match="padding_mode=reflect"):
        layer_cp(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False), 1)
