"""Measures on images what factorising a detector's neck and heads would cost: a table of errors by rank.

An error is |y' - y|^2 / |y|^2 of a part's own output, on the dense detector's inputs, after the closed-form refits
that its form allows: every filter's scale and bias, and the second matrix of a linear layer. Refits are fitted on one
half of the images, errors measured on the other. The heads on regions read the dense detector's first proposals.
"""

import copy
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from norton_det.compression.least_squares import energy_error, least_squares, scale_and_bias
from norton_det.compression.search.options import PART_RANKS
from norton_det.layers.cp_conv import CPConv2d
from norton_det.layers.low_rank_linear import LowRankLinear
from norton_det.models.parts import PARTS, part_layers, regions

NUMBERS = {"box": 64, "mask": 4, "keypoint": 4}
"""How many proposals of each image a head is measured on, by kind of region."""
_NECK = "backbone.fpn"


@torch.no_grad()
def measure_parts(
    detector: Any, images: Tensor, progress: Callable[[str], object] = lambda name: None
) -> dict[str, list[float]]:
    """Measure errors by part, one for each of its PART_RANKS, on normalised images (N, 3, H, W), N at least 2.

    `progress` is told each part that is done.
    """
    stages = detector.eval().backbone.body(images)
    levels = detector.backbone.fpn(stages)
    pooled = _pool(detector, levels, images)
    errors = {}
    for part in PARTS:
        layers = part_layers(detector, part)
        if not layers:
            continue
        place, inputs = _reads(part, stages, levels, pooled)
        module = detector.get_submodule(place)
        names = [layer.removeprefix(f"{place}.") for layer in layers]
        errors[part] = [part_error(module, names, inputs, rank) for rank in PART_RANKS[part]]
        progress(part)
    return errors


def part_error(module: nn.Module, layers: list[str], inputs: list[Any], rank: int | None) -> float:
    """Measure the error of a module's output with the named layers factorised, averaged over the inputs.

    An input is what the module takes, a tensor (N, ...) or tensors by name; so is its output.
    """
    if rank is None:
        return 0.0
    both = copy.deepcopy(module)
    for name in layers:
        both.set_submodule(name, _SideBySide(module.get_submodule(name), rank))
    return mean(error for x in inputs for error in _errors(both(_twice(x))))


class _SideBySide(nn.Module):
    """A layer that is dense for the first half of a batch, and factorised and refitted for the second half.

    Two batches of the same images run through a module at once; what is not replaced treats both alike.
    """

    def __init__(self, dense: Any, rank: int) -> None:
        super().__init__()
        self.dense = dense
        factorise: Any = LowRankLinear.from_linear if isinstance(dense, nn.Linear) else CPConv2d.from_conv
        self.small = factorise(dense, rank)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2)
        target = self.dense(first)
        return torch.cat([target, _refitted(self.small, second, target[: len(target) // 2])])


def _twice(x: Any) -> Any:
    return {name: _twice(value) for name, value in x.items()} if isinstance(x, dict) else torch.cat([x, x])


def _errors(output: Any) -> list[float]:
    """Return the errors of outputs that ran side by side; the pyramid's pooled level, which repeats another, is left
    out."""
    if isinstance(output, dict):
        return [error for name, level in output.items() if name != "pool" for error in _errors(level)]
    wanted, found = output.chunk(2)
    half = len(wanted) // 2
    return [energy_error(found[half:], wanted[half:])]


def _refitted(layer: CPConv2d | LowRankLinear, x: Tensor, target: Tensor) -> Tensor:
    """Return the output on x of a factorised layer, refitted to give `target` on the first rows of x."""
    fit = slice(len(target))
    y: Tensor = layer(x)
    if isinstance(layer, LowRankLinear):
        inner = layer.down(x)
        weight, bias = least_squares(inner[fit], target - y[fit])
        y += inner @ weight.T + bias
        return y
    rows = (maps.transpose(0, 1).flatten(1).T for maps in (y[fit], target))  # from (n, K, H, W) to (n*H*W, K)
    scale, bias = scale_and_bias(*rows)
    return scale[:, None, None] * y + bias[:, None, None]


def _pool(detector: Any, levels: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Return the pooled regions that each head reads, by kind: the dense detector's first proposals."""
    heads = regions(detector)
    if not heads:
        return {}
    shapes = [(images.shape[2], images.shape[3])] * len(images)
    proposals, _ = detector.rpn(ImageList(images, shapes), levels)
    return {
        kind: region.pooler(levels, [boxes[: NUMBERS[kind]] for boxes in proposals], shapes)
        for kind, region in heads.items()
    }


def _reads(
    part: str, stages: dict[str, Tensor], levels: dict[str, Tensor], pooled: dict[str, Tensor]
) -> tuple[str, list[Any]]:
    """Return the place of the module that holds a part's layers, and its inputs: the stages' outputs, each level, or
    regions."""
    place = PARTS[part][0]
    if place.startswith(_NECK):
        return _NECK, [stages]
    kind = part.split("_")[0]
    return place, [pooled[kind]] if kind in pooled else list(levels.values())
