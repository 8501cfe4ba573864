"""Slow, literal versions of what norton_det computes in another way."""

import torch.nn.functional as F
from torch import Tensor

from norton_det.layers.cp_conv import CPConv2d


def separable(layer: CPConv2d, x: Tensor) -> Tensor:
    """The paper's stack for a CP layer: 1x1, (kh, 1) depthwise, (1, kw) depthwise, sum over r."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    channels = layer.rank * layer.out_channels
    x = F.conv2d(x, layer.channel.reshape(channels, -1, 1, 1))
    vertical = layer.vertical.reshape(channels, 1, kh, 1)
    x = F.conv2d(x, vertical, None, (sh, 1), (ph, 0), (dh, 1), groups=channels)
    horizontal = layer.horizontal.reshape(channels, 1, 1, kw)
    x = F.conv2d(x, horizontal, None, (1, sw), (0, pw), (1, dw), groups=channels)
    x = x.unflatten(1, (layer.rank, layer.out_channels)).sum(1)
    return x if layer.bias is None else x + layer.bias[:, None, None]
