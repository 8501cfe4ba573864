"""Holds a linear layer as the product of two thin matrices."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """A linear layer y = up(down(x)) of rank r; it takes and gives what `nn.Linear` does, with r (in + out) weights.

    Parameters: down.weight (r, in), up.weight (out, r), up.bias (out,).

    Raises:
        ValueError: for a rank below 1.

    Examples:
        >>> layer = LowRankLinear.from_linear(nn.Linear(1024, 256), rank=8)
        >>> sum(p.numel() for p in layer.parameters())  # 8 * (1024 + 256) + 256
        10496
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features)

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank: int) -> Self:
        """Build the best approximation of rank r, by truncated SVD (Eckart, Young 1936); the bias is copied.

        A rank above min(in, out) is lowered to that, which loses nothing. Each factor carries the square
        roots of the singular values. Raises ValueError for a layer without bias or with weights that are not finite.
        """
        weight = linear.weight.detach().double()  # (out, in)
        if linear.bias is None:
            raise ValueError("only a linear layer with a bias can be factorised")
        if not torch.isfinite(weight).all():
            raise ValueError("weights are not finite")
        u, values, vt = torch.linalg.svd(weight, full_matrices=False)
        rank = min(rank, len(values))
        roots = values[:rank].sqrt()
        layer = cls(linear.in_features, linear.out_features, rank).to(linear.weight)
        with torch.no_grad():
            layer.down.weight.copy_(roots[:, None] * vt[:rank])
            layer.up.weight.copy_(u[:, :rank] * roots)
            layer.up.bias.copy_(linear.bias)
        return layer

    @property
    def rank(self) -> int:
        """Return r."""
        return self.down.out_features

    @property
    def weight(self) -> Tensor:
        """Return the product (out, in), as `nn.Linear` holds it; differentiable."""
        return self.up.weight @ self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map (.., in) to (.., out)."""
        y: Tensor = self.up(self.down(x))
        return y
