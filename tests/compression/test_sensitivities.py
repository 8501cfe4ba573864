"""The refits and errors behind a plan search, one by one, against closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from norton_det.compression.search import body_sensitivities, part_sensitivities
from norton_det.compression.search.least_squares import least_squares, refit_pointwise
from norton_det.layers.cp_conv import CPConv2d
from norton_det.layers.low_rank_linear import LowRankLinear
from norton_det.models.resnet import ResNetSpec, build_resnet50


@pytest.fixture(autouse=True)
def no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def network():
    return build_resnet50(ResNetSpec.dense(0.125), num_classes=4).eval()


@pytest.mark.parametrize(("rows", "ridge"), [(8, 0.5), (4000, 0.01)])
def test_the_fewer_rows_the_less_they_are_trusted(rows, ridge):
    x, y = torch.randn(rows, 4) + 1, torch.randn(rows, 3)
    a, b = (m.double().numpy() - m.double().numpy().mean(axis=0) for m in (x, y))
    gram = a.T @ a
    expected = np.linalg.solve(gram + ridge * gram.diagonal().mean() * np.eye(4), a.T @ b).T
    weight, bias = least_squares(x, y)
    torch.testing.assert_close(weight, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight @ x.mean(0) + bias, y.mean(0))


def test_a_refitted_convolution_gives_its_targets_with_their_mean():
    conv, norm = nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3).eval()
    x = torch.randn(5000, 4) + 1
    wanted = x @ torch.randn(3, 4).T + 7
    expected = norm(wanted[:, :, None, None])
    refit_pointwise(conv, norm, x, wanted)
    torch.testing.assert_close(norm(conv(x[:, :, None, None])), expected, rtol=0, atol=0.15)


def test_an_error_at_the_ends_is_the_mean_over_them(network):
    x = torch.rand(2, 256, 4, 4)
    output = network.layer4[2](x)
    ends = {"layer3": torch.ones(1), "layer4": output}
    assert body_sensitivities._end_error(network, "layer4.2", 2 * output, ends) == pytest.approx(0.5)


@pytest.mark.parametrize("read", [True, False])
def test_an_error_that_nobody_reads_costs_nothing(network, read):
    if not read:
        for name in ("conv1", "downsample.0"):
            nn.init.zeros_(network.layer4[0].get_submodule(name).weight)
    x = torch.rand(4, 128, 6, 6)
    ends = {"layer4": network.layer4(network.layer3[5](x[2:]))}
    generator = torch.Generator().manual_seed(0)
    errors = body_sensitivities._block_errors(network, "layer3.5", x, ends, "pabs", generator)
    assert (max(errors) > 1e-6) == read


def test_a_layer_of_a_chain_reads_what_those_before_it_have_lost():
    dense = [nn.Linear(6, 6), nn.Linear(6, 6)]
    small = [LowRankLinear.from_linear(layer, rank) for layer, rank in zip(dense, (1, 6), strict=True)]
    x = torch.randn(400, 6)
    chained = part_sensitivities._chain_error(dense, small, x, nn.Identity())
    first = part_sensitivities._chain_error(dense[:1], small[:1], x, nn.Identity())
    assert chained > 0.3 * first > 0.05


def test_a_factorised_layer_is_refitted_by_scale_and_bias_or_by_its_second_matrix():
    conv, linear = nn.Conv2d(3, 4, 3), nn.Linear(5, 6)
    maps, rows = torch.randn(8, 3, 9, 9), torch.randn(3000, 5)
    cp, low_rank = CPConv2d.from_conv(conv, 9), LowRankLinear.from_linear(linear, 5)
    cp.channel.mul_(torch.tensor([0.5, -2, 3, 1])[:, None])
    cp.bias.add_(1)
    low_rank.up.weight.mul_(0.5)
    low_rank.up.bias.add_(1)
    for layer, dense, x, tolerance in ((cp, conv, maps, 1e-3), (low_rank, linear, rows, 0.05)):
        target = dense(x)
        refitted = part_sensitivities._refitted(layer, x, target[: len(x) // 2])
        assert (refitted - target).norm() < tolerance * target.norm()
