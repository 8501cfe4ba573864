"""Keeps an exponential moving average of a model's weights while it trains."""

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class WeightAverage(Generic[M]):
    """Holds in `model` a copy whose weights and statistics follow the trained model's: a <- d a + (1 - d) w.

    d is the lesser of `decay` and (1 + i) / (10 + i) at iteration i, so that the start is soon forgotten.
    Integer tensors are copied. Raises ValueError for a decay outside 0 to 1.
    """

    def __init__(self, trained: M, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}")
        self.decay = decay
        self.model = deepcopy(trained).requires_grad_(False)

    @torch.no_grad()
    def update(self, trained: nn.Module, iteration: int) -> None:
        """Move the average towards the weights that the trained model has after an iteration."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        state = trained.state_dict()
        for name, mine in self.model.state_dict().items():
            if mine.is_floating_point():
                mine.lerp_(state[name], 1 - decay)
            else:
                mine.copy_(state[name])
