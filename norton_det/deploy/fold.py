"""Folding what is linear into the convolution before it, for inference."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import FeaturePyramidNetwork

from norton_det.layers.cp_conv import CPConv2d, DepthwiseCPConv2d
from norton_det.models.detectors import BODY
from norton_det.models.resnet import GROUPS


def fold_batch_norms(detector: GeneralizedRCNN) -> None:
    """Fold every BatchNorm of the body, trainable or frozen, into its convolution, in place.

    conv and norm compute  gamma * (W x - mean) / sqrt(var + eps) + beta,  which is a convolution whose filter k is
    scaled by gamma_k / sqrt(var_k + eps) and that has a bias. A CP filter is scaled in its channel factor.
    """
    for conv_name, norm_name in (pair for group in GROUPS.values() for pair in group.producers):
        conv, norm = (detector.get_submodule(BODY + name) for name in (conv_name, norm_name))
        scale, shift = _affine(norm)
        detector.set_submodule(BODY + conv_name, _scaled(conv, scale, shift))
        detector.set_submodule(BODY + norm_name, nn.Identity())


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a BatchNorm in evaluation multiplies each channel by (K,), and what it adds (K,)."""
    gamma, beta, mean, variance = (
        getattr(norm, name).detach().double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    assert isinstance(norm.eps, float)
    scale = gamma / torch.sqrt(variance + norm.eps)
    return scale.float(), (beta - mean * scale).float()


def _scaled(conv: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
    """The convolution with filters and bias-free output scaled (K,), and the shift (K,) as its bias."""
    if isinstance(conv, CPConv2d):
        factors = conv.factors
        factors = type(factors)(factors.channel * scale[:, None, None], factors.vertical, factors.horizontal)
        return CPConv2d.from_factors(
            factors, stride=conv.stride, padding=conv.padding, dilation=conv.dilation, bias=shift, form=conv.form
        )
    assert isinstance(conv, nn.Conv2d)
    conv.weight = nn.Parameter(conv.weight.detach() * scale[:, None, None, None])
    conv.bias = nn.Parameter(shift)
    return conv


def fold_pyramid(detector: GeneralizedRCNN) -> None:
    """Spare the pyramid the lateral convolution of its finest level, in place, where that level's output convolution
    is a CP one in its depthwise form; see `FoldedPyramid`."""
    pyramid = detector.backbone.fpn
    if isinstance(pyramid.layer_blocks[0][0], DepthwiseCPConv2d):
        detector.backbone.fpn = FoldedPyramid(pyramid)


class FoldedPyramid(nn.Module):
    """A pyramid that computes what `pyramid` does, with one 1x1 convolution less on its finest level.

    There the 1x1 P of the CP convolution follows the sum of a lateral 1x1 L and the coarser level, upsampled, and
    nothing else reads that sum:  P(L x + up(y)) = (P L) x + up(P y).  P L is one convolution, and P y has a quarter
    of the positions.
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
        """The levels by name, the finest first, as torchvision's pyramid gives them."""
        inner, output = self.pyramid.inner_blocks, self.pyramid.layer_blocks
        names, (finest, *others) = list(maps), list(maps.values())
        total = inner[-1](others[-1])
        levels = [output[-1](total)]
        for level in range(len(others) - 1, 0, -1):
            total = _add_upsampled(inner[level](others[level - 1]), total)
            levels.insert(0, output[level](total))
        cp = output[0][0]
        levels.insert(0, cp.depthwise(_add_upsampled(self.merged(finest), cp.pointwise(total))))
        levels, names = self.pyramid.extra_blocks(levels, [finest, *others], names)
        return OrderedDict(zip(names, levels, strict=True))


def _add_upsampled(fine: Tensor, coarse: Tensor) -> Tensor:
    return fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
