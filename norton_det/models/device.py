"""The device on which a network lies."""

import torch
from torch import nn


def device_of(network: nn.Module) -> torch.device:
    """Return where a network's parameters lie."""
    return next(network.parameters()).device
