"""Lays weights out as convolutions run fastest, around a fault of oneDNN."""

from typing import Any

import torch
from torch import Tensor, nn

ONEDNN_BLOCK = 16
"""Input channels that oneDNN's strided 1x1 convolutions take at a time, where a CPU has AVX-512."""


def to_channels_last(network: nn.Module) -> None:
    """Lay a network's weights out channels_last, in place, but for convolutions whose training that would break.

    For a strided 1x1 convolution with fewer than ONEDNN_BLOCK input channels, oneDNN computes the weight's gradient
    outside the memory that it was given: the numbers are wrong, or the process aborts. Those convolutions stay in
    torch's own layout and bring their inputs into it.

    Source: https://github.com/uxlfoundation/oneDNN/issues/6035
    """
    network.to(memory_format=torch.channels_last)
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and _is_broken(conv):
            conv.weight.data = conv.weight.data.clone(memory_format=torch.contiguous_format)
            conv.register_forward_pre_hook(_contiguous)


def _is_broken(conv: nn.Conv2d) -> bool:
    return conv.in_channels < ONEDNN_BLOCK and conv.kernel_size == (1, 1) and max(conv.stride) > 1


def _contiguous(conv: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    return tuple(x.contiguous() for x in inputs)
