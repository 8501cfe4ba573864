"""What factorising a detector's neck, RPN and heads would cost, measured on images: a table of errors by rank.

An error is |y' - y|^2 / |y|^2 of a part's own output, on the dense detector's inputs, behind the closed-form refits
that its form allows: every filter's scale and bias, and the second matrix of a linear layer. Fitted on one half of
the images, measured on the other. The heads read the regions that the dense detector proposes first.
"""

from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from norton_det.analysis.watch import watch_inputs
from norton_det.compression.search.body_sensitivities import RANKS, relative_error
from norton_det.compression.search.least_squares import least_squares
from norton_det.layers.cp_conv import CPConv2d
from norton_det.layers.low_rank_linear import LowRankLinear
from norton_det.models.detectors import PARTS, part_layers

PART_RANKS: dict[str, tuple[int | None, ...]] = {
    part: (None, 64, 128, 256, 512) if part == "box_head" else RANKS for part in PARTS
}
"""What the layers of each part may become; None: they stay dense."""
REGIONS = {"box_head": 64, "mask_head": 4, "keypoint_head": 4}
"""Proposals of each image that a head is measured on."""


@torch.no_grad()
def measure_parts(
    detector: Any, images: Tensor, progress: Callable[[str], object] = lambda name: None
) -> dict[str, list[float]]:
    """Errors by part, one for each of its PART_RANKS, on normalised images (N, 3, H, W), N at least 2.

    `progress` is told each part that is done.
    """
    errors = {}
    for part, inputs in _part_inputs(detector.eval(), images).items():
        layers: list[Any] = [detector.get_submodule(name) for name in part_layers(detector, part)]
        errors[part] = [_part_error(part, layers, inputs, rank) for rank in PART_RANKS[part]]
        progress(part)
    return errors


def _part_inputs(detector: Any, images: Tensor) -> dict[str, list[Tensor]]:
    """What each part reads: the neck and the RPN a map a level, the heads their regions."""
    neck: list[Tensor] = []
    layers = {name: detector.get_submodule(name) for name in part_layers(detector, "neck")}
    with watch_inputs(layers, lambda _, x: neck.append(x)):
        features = detector.backbone(images)
    shapes = [(images.shape[2], images.shape[3])] * len(images)
    proposals, _ = detector.rpn(ImageList(images, shapes), features)
    found = {"neck": neck, "rpn": list(features.values())}
    for part, number in REGIONS.items():
        if part_layers(detector, part):
            pool = getattr(detector.roi_heads, part.replace("head", "roi_pool"))
            regions = pool(features, [boxes[:number] for boxes in proposals], shapes)
            found[part] = [regions.flatten(1) if part == "box_head" else regions]
    return found


def _part_error(part: str, layers: list[Any], inputs: list[Tensor], rank: int | None) -> float:
    """The error of a part at a rank, mean over what it reads. The neck has a layer a level, others are chains."""
    if rank is None:
        return 0.0
    factorised = [_factorised(layer, rank) for layer in layers]
    if part == "neck":
        chains = zip(layers, factorised, inputs, strict=True)
        return mean(_chain_error([dense], [small], x, nn.Identity()) for dense, small, x in chains)
    return mean(_chain_error(layers, factorised, x, nn.ReLU()) for x in inputs)


def _factorised(layer: Any, rank: int) -> CPConv2d | LowRankLinear:
    return (LowRankLinear.from_linear if isinstance(layer, nn.Linear) else CPConv2d.from_conv)(layer, rank)


def _chain_error(layers: list[Any], factorised: list[Any], x: Tensor, activation: nn.Module) -> float:
    """The error behind the last of several layers, each with its activation, refitted one after the other."""
    half = len(x) // 2
    y = x
    for dense, small in zip(layers, factorised, strict=True):
        target = dense(x)
        x, y = activation(target), activation(_refitted(small, y, target[:half]))
    return relative_error(y[half:], x[half:])


def _refitted(layer: CPConv2d | LowRankLinear, x: Tensor, target: Tensor) -> Tensor:
    """The output on x of a factorised layer that has been refitted to give `target` on the first rows of x."""
    fit = slice(len(target))
    y: Tensor = layer(x)
    if isinstance(layer, LowRankLinear):
        inner = layer.down(x)
        weight, bias = least_squares(inner[fit], target - y[fit])
        y += inner @ weight.T + bias
        return y
    centred = y[fit] - y[fit].mean(dim=(0, 2, 3), keepdim=True)
    variance, covariance = ((centred * z).mean(dim=(0, 2, 3), keepdim=True) for z in (centred, target))
    scale = covariance / variance.clamp_min(1e-30)
    refitted: Tensor = scale * y + (target - scale * y[fit]).mean(dim=(0, 2, 3), keepdim=True)
    return refitted
