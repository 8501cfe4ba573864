"""Folding BatchNorm into the convolution before it, for inference."""

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from norton_det.layers.cp_conv import CPConv2d
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
