"""Puts networks into evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def evaluating(network: Network) -> Iterator[Network]:
    """Put a network into evaluation mode inside the `with` block; afterwards each of its modules has its own mode
    again."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield network
    finally:
        for module in training:
            module.training = True
