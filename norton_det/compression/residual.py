"""Takes a residual block apart into what it adds up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import relu

from norton_det.models.channels import Block, Body


@dataclass(frozen=True)
class Residual:
    """A residual block taken apart: relu(branch(x) + shortcut(x)), with a ReLU between the branch's pairs.

    Attributes:
        pairs: the branch's convolutions, each with its BatchNorm, in the order of the data.
        shortcut: an Identity where the block adds its input itself.
        spatial: the places in `pairs` of the convolutions that may be decomposed.
    """

    pairs: Any
    shortcut: Any
    spatial: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Compute what the block does, from (N, C, H, W) to (N, K, H', W')."""
        return relu(self.sum(x))

    def sum(self, x: Tensor) -> Tensor:
        """Compute what the block gives before its last ReLU."""
        summed: Tensor = self.pairs[-1](self.inside(x)) + self.shortcut(x)
        return summed

    def inside(self, x: Tensor) -> Tensor:
        """Compute what the branch's last convolution reads."""
        return chained(self.pairs[:-1], x)


def take_apart(model: nn.Module, body: Body, block: Block) -> Residual:
    """Take a block of a model's body apart; the modules stay the model's own."""
    names = [body.prefix + conv for conv in block.convs]
    norms = dict(pair for group in body.groups.values() for pair in group.producers)
    pairs = [nn.Sequential(*(model.get_submodule(layer) for layer in (name, norms[name]))) for name in names]
    module: Any = model.get_submodule(body.prefix + block.name)
    shortcut = nn.Identity() if module.downsample is None else module.downsample
    return Residual(nn.ModuleList(pairs), shortcut, tuple(block.convs.index(conv) for conv in block.spatial))


def chained(pairs: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Pass maps through convolutions with their BatchNorm, a ReLU behind each."""
    for pair in pairs:
        x = relu(pair(x))
    return x
