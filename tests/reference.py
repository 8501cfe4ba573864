"""Slow, literal versions of what norton_det computes in another way, and networks that look trained."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.channels import read_body


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


@contextmanager
def silenced(network: nn.Module, kept: Mapping[str, Sequence[int]]) -> Iterator[nn.Module]:
    """Prune without slicing: while it lasts, every dropped channel is silenced behind its BatchNorm."""
    handles = []
    for group in read_body(network).groups.values():
        mask = torch.zeros(group.width)
        mask[list(kept[group.name])] = 1
        for _, norm in group.producers:
            hook = network.get_submodule(norm).register_forward_hook(
                lambda module, inputs, output, mask=mask: output * mask[:, None, None]
            )
            handles.append(hook)
    try:
        yield network
    finally:
        for handle in handles:
            handle.remove()


def perturb_batch_norms(model: nn.Module) -> nn.Module:
    """Trained-looking statistics, so that a BatchNorm whose numbers were lost or shuffled shows."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if hasattr(module, "running_var"):
            for tensor, low, high in (
                (module.running_var, 0.5, 2),
                (module.running_mean, -0.2, 0.2),
                (module.weight, 0.3, 1),
                (module.bias, -0.2, 0.2),
            ):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model
