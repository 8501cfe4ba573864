"""LowRankLinear against numpy's singular values."""

import numpy as np
import pytest
import torch
from torch import nn

from norton_det.layers.low_rank_linear import LowRankLinear


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(12, 7)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_error_is_what_the_dropped_singular_values_say(linear, rank):
    layer = LowRankLinear.from_linear(linear, rank)
    values = np.linalg.svd(linear.weight.detach().double().numpy(), compute_uv=False)
    error = (layer.weight - linear.weight).norm().item()
    assert error == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), abs=1e-5)


def test_full_rank_is_the_layer_itself_and_more_is_cut_down(linear):
    layer = LowRankLinear.from_linear(linear, 100)
    assert layer.rank == 7
    x = torch.randn(5, 12)
    torch.testing.assert_close(layer(x), linear(x))


def test_it_computes_what_its_weight_says(linear):
    layer = LowRankLinear.from_linear(linear, 2)
    x = torch.randn(5, 12)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, linear.bias))


def test_what_cannot_be_factorised_is_refused(linear):
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LowRankLinear(3, 3, 0)
    with pytest.raises(ValueError, match="bias"):
        LowRankLinear.from_linear(nn.Linear(3, 3, bias=False), 1)
    linear.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        LowRankLinear.from_linear(linear, 1)
