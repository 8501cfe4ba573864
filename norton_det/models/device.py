"""Tells on which device a network lies."""

import torch
from torch import nn


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's parameters."""
    return next(network.parameters()).device
