"""The layout in which networks are trained, against float64."""

import copy

import pytest
import torch
from torch import nn

from norton_det.models.layout import ONEDNN_BLOCK, to_channels_last


@pytest.mark.parametrize("channels", [4, ONEDNN_BLOCK - 1, ONEDNN_BLOCK])
def test_a_strided_convolution_of_few_channels_gets_the_right_gradient(channels):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 24, 1, stride=2, bias=False))
    exact = copy.deepcopy(network).double()
    pixels = torch.randn(4, 3, 58, 58)
    exact(pixels.double()).square().mean().backward()
    to_channels_last(network)
    for _ in range(5):
        network.zero_grad()
        network(pixels.to(memory_format=torch.channels_last)).square().mean().backward()
        for ours, theirs in zip(network.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)


def test_all_other_convolutions_are_channels_last():
    network = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1, stride=2), nn.Conv2d(8, 16, 1))
    to_channels_last(network)
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in network)
    assert not any(conv._forward_pre_hooks for conv in network)
