"""Folds linear layers into a neighbouring convolution, for inference."""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.misc import Conv2dNormActivation

from norton_det.layers.cp_conv import CPConv2d, DepthwiseCPConv2d
from norton_det.models.channels import NORMS, read_body


def fold_batch_norms(detector: nn.Module) -> None:
    """Fold every BatchNorm of the body, the neck and the heads, trainable or frozen, into its convolution, in place.

    conv and norm compute  gamma * (W x + b - mean) / sqrt(var + eps) + beta,  which is a convolution whose filter k
    and bias b_k are scaled by gamma_k / sqrt(var_k + eps). A CP filter is scaled in its channel factor. GroupNorm
    depends on its input and stays.
    """
    for conv, norm in _convolutions_before_norms(detector):
        detector.set_submodule(conv, _scaled(detector.get_submodule(conv), *_affine(detector.get_submodule(norm))))
        detector.set_submodule(norm, nn.Identity())


def _convolutions_before_norms(detector: nn.Module) -> list[tuple[str, str]]:
    """Return the names of convolutions and their norms: the body's, and those in `Conv2dNormActivation` blocks."""
    of_body = [pair for group in read_body(detector).groups.values() for pair in group.producers]
    of_blocks = [
        (f"{name}.0", f"{name}.1")
        for name, block in detector.named_modules()
        if isinstance(block, Conv2dNormActivation) and any(isinstance(layer, NORMS) for layer in block)
    ]
    return of_body + of_blocks


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the factor (K,) and the offset (K,) that a BatchNorm in evaluation applies to each channel."""
    gamma, beta, mean, variance = (
        getattr(norm, name).detach().double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    assert isinstance(norm.eps, float)
    scale = gamma / torch.sqrt(variance + norm.eps)
    return scale.float(), (beta - mean * scale).float()


def _scaled(conv: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
    """Return the convolution whose output is scaled (K,) and then shifted (K,)."""
    assert isinstance(conv, nn.Conv2d | CPConv2d)
    bias = shift if conv.bias is None else shift + scale * conv.bias.detach()
    if isinstance(conv, CPConv2d):
        factors = conv.factors
        factors = type(factors)(factors.channel * scale[:, None, None], factors.vertical, factors.horizontal)
        return CPConv2d.from_factors(
            factors, stride=conv.stride, padding=conv.padding, dilation=conv.dilation, bias=bias, form=conv.form
        )
    conv.weight = nn.Parameter(conv.weight.detach() * scale[:, None, None, None])
    conv.bias = nn.Parameter(bias)
    return conv


def fold_pyramid(detector: nn.Module) -> None:
    """Fold away the lateral convolution of the pyramid's finest level, in place, see `FoldedPyramid`.

    This is done if that level's output convolution is a CP one in its depthwise form, and both blocks of the level
    hold nothing but convolutions.
    """
    backbone: Any = detector.backbone
    pyramid = backbone.fpn
    (_, *behind_lateral), (output, *behind_output) = pyramid.inner_blocks[0], pyramid.layer_blocks[0]
    is_linear = all(isinstance(layer, nn.Identity) for layer in (*behind_lateral, *behind_output))
    if len(pyramid.inner_blocks) > 1 and is_linear and isinstance(output, DepthwiseCPConv2d):
        backbone.fpn = FoldedPyramid(pyramid)


class FoldedPyramid(nn.Module):
    """A pyramid that computes what `pyramid` does, with one 1x1 convolution less on its finest level.

    There the pointwise convolution P of the CP convolution follows the sum of the lateral convolution L and the
    upsampled coarser level, and nothing else reads that sum:  P(L x + up(y)) = (P L) x + up(P y).  P L is one
    convolution, and P y is computed at a quarter of the positions.
    """

    def __init__(self, pyramid: FeaturePyramidNetwork) -> None:
        super().__init__()
        self.pyramid = pyramid
        finest, lateral = pyramid.layer_blocks[0][0], pyramid.inner_blocks[0][0]
        pointwise = finest.pointwise.weight.detach().flatten(1)  # (R*K, C, 1, 1) to (R*K, C)
        self.merged = nn.Conv2d(lateral.in_channels, len(pointwise), 1)
        self.merged.weight = nn.Parameter((pointwise @ lateral.weight.detach().flatten(1))[..., None, None])
        self.merged.bias = nn.Parameter(pointwise @ lateral.bias.detach())

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the levels by name, the finest first, as torchvision's pyramid does."""
        inner, output = self.pyramid.inner_blocks, self.pyramid.layer_blocks
        names, (finest, *others) = list(maps), list(maps.values())
        total = inner[-1](others[-1])
        levels = [output[-1](total)]
        for level in range(len(others) - 1, 0, -1):
            total = _add_upsampled(inner[level](others[level - 1]), total)
            levels.insert(0, output[level](total))
        cp = output[0][0]
        levels.insert(0, cp.depthwise(_add_upsampled(self.merged(finest), cp.pointwise(total))))
        if self.pyramid.extra_blocks is not None:
            levels, names = self.pyramid.extra_blocks(levels, [finest, *others], names)
        return OrderedDict(zip(names, levels, strict=True))


def _add_upsampled(fine: Tensor, coarse: Tensor) -> Tensor:
    return fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
