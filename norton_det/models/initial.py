"""Draws random weights as torchvision does, for a network that has none yet."""

import math

import torch
from torch import nn
from torchvision.models import ResNet
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.models.channels import DETECTOR_BODY

_PRIOR = 0.01
"""The probability that a detector of one stage gives each class at each place before it has learnt anything."""


@torch.no_grad()
def initialise(model: nn.Module) -> nn.Module:
    """Move a network from the meta device to the CPU with random weights, and return it.

    Convolutions of the body and of the heads on regions are drawn as in He et al. 2015 (fan-out), the pyramid's by
    their fan-in, those of the RPN and of towers with the standard deviation 0.01, all as in torchvision; CP factors
    with the variance of He et al.
    """
    model.to_empty(device="cpu")
    for name, layer in model.named_modules():
        if isinstance(layer, FrozenBatchNorm2d):
            for buffer, value in zip((layer.weight, layer.bias, layer.running_mean, layer.running_var), (1, 0, 0, 1),
                                     strict=True):  # fmt: skip
                buffer.fill_(value)
        elif hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            draw(name, layer, is_classifier=isinstance(model, ResNet))
    return model


def draw(name: str, layer: nn.Conv2d | nn.ConvTranspose2d, is_classifier: bool = False) -> None:
    """Draw the weights of a convolution, in place, as torchvision does for the layer of that name."""
    if name.startswith("backbone.fpn"):
        nn.init.kaiming_uniform_(layer.weight, a=1)
    elif name.startswith(("rpn.head", "head.")):
        nn.init.normal_(layer.weight, std=0.01)
    elif is_classifier or name.startswith((DETECTOR_BODY, "roi_heads")):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        is_class = name == "head.classification_head.cls_logits"
        nn.init.constant_(layer.bias, -math.log((1 - _PRIOR) / _PRIOR) if is_class else 0.0)


def allocate(model: nn.Module) -> nn.Module:
    """Move a network from the meta device to the CPU, to be filled by a file, and return it."""
    model.to_empty(device="cpu")
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    return model
