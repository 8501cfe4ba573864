"""Holds the CP factors of convolution filters, rebuilds the filters from them, and measures how far they are off.

Letters: K filters, C channels, kernel (kh, kw), rank R.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CPFactors:
    """Holds the CP factors of a layer's filters: channel (K, C, R), vertical (K, kh, R), horizontal (K, kw, R).

    Raises ValueError for factors of other shapes.
    """

    channel: Tensor
    vertical: Tensor
    horizontal: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(factor.shape) for factor in self.modes]
        if any(len(s) != 3 or (s[0], s[2]) != (shapes[0][0], shapes[0][-1]) for s in shapes):
            raise ValueError(f"expected factors of shapes (K, C, R), (K, kh, R), (K, kw, R), got {shapes}")

    @property
    def modes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three factors in the order channel, vertical, horizontal."""
        return self.channel, self.vertical, self.horizontal

    @property
    def rank(self) -> int:
        """Return the number of components R."""
        return self.channel.shape[2]

    @property
    def filters(self) -> int:
        """Return the number of filters K."""
        return self.channel.shape[0]

    def select(self, indices: Tensor) -> CPFactors:
        """Return the factors of the filters at `indices` (long, any order)."""
        return CPFactors(*(factor[indices] for factor in self.modes))

    def normalised(self) -> CPFactors:
        """Return the same filters in a canonical form: CP alone leaves signs, scales and the order of components
        open.

        Each component's norm is spread evenly over the three modes, components are sorted by falling norm,
        and the entry of largest magnitude of every vertical and horizontal vector is positive.
        """
        norms = [torch.linalg.vector_norm(factor, dim=1, keepdim=True) for factor in self.modes]  # (K, 1, R)
        size = (norms[0].pow(1 / 3) * norms[1].pow(1 / 3)) * norms[2].pow(1 / 3)
        unit = [factor / norm.where(norm > 0, 1) for factor, norm in zip(self.modes, norms, strict=True)]
        sign_v, sign_h = _sign(unit[1]), _sign(unit[2])
        order = size.argsort(dim=2, descending=True, stable=True)
        channel, vertical, horizontal = (
            (size * factor).take_along_dim(order, dim=2)
            for factor in (unit[0] * sign_v * sign_h, unit[1] * sign_v, unit[2] * sign_h)
        )
        return CPFactors(channel, vertical, horizontal)


def reconstruct(factors: CPFactors) -> Tensor:
    """Return the filters (K, C, kh, kw) that the factors stand for."""
    kernels = outer(factors.vertical, factors.horizontal)  # (K, kh*kw, R)
    filters = factors.channel @ kernels.mT  # (K, C, kh*kw)
    return filters.view(*filters.shape[:2], factors.vertical.shape[1], factors.horizontal.shape[1])


def relative_error(weight: Tensor, factors: CPFactors) -> Tensor:
    """Return ||w - w'||^2 / ||w||^2 of each filter w and its reconstruction w', (K,) float64; 0 for a zero filter.

    Raises ValueError where the factors do not fit the weight (K, C, kh, kw).
    """
    filters = weight.detach().double()
    rebuilt = reconstruct(CPFactors(*(factor.detach().double() for factor in factors.modes)))
    if filters.shape != rebuilt.shape:
        raise ValueError(f"factors of filters {tuple(rebuilt.shape)} do not fit a weight {tuple(filters.shape)}")
    lost = (filters - rebuilt).square().sum(dim=(1, 2, 3))
    total = filters.square().sum(dim=(1, 2, 3))
    return torch.where(lost > 0, lost / total, 0.0)


def nmse(weight: Tensor, approximation: Tensor) -> float:
    """Return ||W - W'||^2 / ||W||^2 of two weights W and W' of one shape; 0 where they are equal."""
    filters = weight.detach().double()
    lost = (filters - approximation.detach().double()).square().sum().item()
    return lost / filters.square().sum().item() if lost > 0 else 0.0


def outer(vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Return the kernel of each component, (B, kh*kw, R)."""
    return (vertical[:, :, None] * horizontal[:, None]).flatten(1, 2)


def _sign(factor: Tensor) -> Tensor:
    """Return the sign (K, 1, R), never 0, of the entry of largest magnitude in each column of (K, n, R)."""
    largest = factor.take_along_dim(factor.abs().argmax(dim=1, keepdim=True), dim=1)
    return torch.where(largest < 0, -1.0, 1.0).to(factor.dtype)
