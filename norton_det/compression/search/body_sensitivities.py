"""Measures on images what compression would cost a ResNet's features: a table of errors by option.

An error is a share of energy, |y' - y|^2 / |y|^2, of a block's or stage's own output on the dense network's inputs:
what the best closed-form refit leaves, and recovery or fine-tuning will hardly get back. It is weighted by what of it
reaches the ends of this and the later stages, through blocks that are refitted too. Refits are fitted on one half of
the images, errors are measured on the other. Only the maps of one block or stage are held at a time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

from norton_det.compression.least_squares import ROWS, best_linear, energy_error
from norton_det.compression.plan import kept_channels
from norton_det.compression.residual import take_apart
from norton_det.compression.saliency import Criterion, group_scores, kept_filters
from norton_det.compression.search.block_errors import block_errors, handed_on
from norton_det.compression.search.options import RATES, UNCHANGED, block_options, input_group, pruned_stages
from norton_det.models.channels import Body, ChannelGroup
from norton_det.models.device import device_of

LEAST_IMAGES = 8
"""At least how many images of each half are used, if there are as many."""
_MEDIAN_RATE = RATES[len(RATES) // 2]


@dataclass(frozen=True)
class Sensitivities:
    """Holds errors at the stages' ends: for each block one an option, for each pruned stage one for each of RATES.

    `parts` has the errors of the own outputs of a detector's parts, one for each rank; it is empty if not measured.
    """

    blocks: Mapping[str, Sequence[float]]
    stages: Mapping[str, Sequence[float]]
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)


def centre_crops(model: nn.Module, images: Sequence[Tensor], size: int) -> Tensor:
    """Crop RGB images (3, H, W) in 0 to 1 about their centres to normalised (N, 3, size, size) on a model's device.

    A detector's images are normalised by its own mean and standard deviation, a classifier's by ImageNet's.
    """
    imagenet: Any = ResNet50_Weights.IMAGENET1K_V1
    own: Any = getattr(model, "transform", None)
    colours = {"mean": tuple(own.image_mean), "std": tuple(own.image_std)} if own else {}
    preprocess = imagenet.transforms(crop_size=size, resize_size=size, **colours)
    device = device_of(model)
    return torch.stack([preprocess(image) for image in images]).to(device, memory_format=torch.channels_last)


@torch.no_grad()
def measure_body(
    model: nn.Module,
    body: Body,
    images: Tensor,
    criterion: Criterion,
    generator: torch.Generator,
    progress: Callable[[str], object] = lambda name: None,
) -> Sensitivities:
    """Measure the errors of a dense model's body with BatchNorm2d on normalised images (N, 3, H, W), N at least 2.

    `progress` is told each block and stage that is done.
    """
    resnet: Any = model.get_submodule(body.prefix.removesuffix("."))
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    blocks: dict[str, list[float]] = {}
    stages: dict[str, list[float]] = {}
    shares: dict[str, float] = {}
    before: tuple[Tensor, Tensor] | None = None
    for block in body.blocks:
        residual, taken = take_apart(model, body, block), _enough(x)
        few = _of_each_half(x, taken)
        if before is not None:
            shares[block.name] = handed_on(residual, *before, generator)
        if block.stage in pruned_stages(body) and block.stage not in stages:
            stages[block.stage] = _stage_errors(model, body, block.stage, few, generator)
            progress(block.stage)
        x, options = residual(x), block_options(body, block)
        output = _of_each_half(x, taken)
        if options == (UNCHANGED,):  # then its output can lose only the stage's channels
            errors = [0.0]
            distorted = _pruned(output, output, _scores(model, body.groups[block.stage]), _MEDIAN_RATE, generator)
        else:
            errors, distorted = block_errors(residual, few, options, criterion, generator)
        blocks[block.name], before = errors, (output, distorted)
        progress(block.name)
    weights = _weights(body, shares)
    return Sensitivities(
        {name: [weights[name] * error for error in errors] for name, errors in blocks.items()},
        {
            stage: [weights[body.last_block(stage).name] * error for error in errors]
            for stage, errors in stages.items()
        },
    )


def _weights(body: Body, shares: Mapping[str, float]) -> dict[str, float]:
    """Return by block what an error of its output counts for: how much reaches the stages' ends, averaged over them.

    `shares`: how much of its input's error each block but the first hands on.
    """
    ends = {body.last_block(stage).name for stage in body.stages}
    weights, weight = {}, 0.0
    for block in reversed(body.blocks):
        weight += (block.name in ends) / len(ends)
        weights[block.name] = weight
        weight *= shares.get(block.name, 0.0)
    return weights


def _enough(maps: Tensor) -> int:
    """Return how many images of each half are worth their time: few images of large maps give enough rows."""
    return min(len(maps) // 2, max(LEAST_IMAGES, math.ceil(ROWS / maps[0, 0].numel())))


def _of_each_half(maps: Tensor, taken: int) -> Tensor:
    """Return the first `taken` maps of both halves."""
    half = len(maps) // 2
    return torch.cat([maps[:taken], maps[half : half + taken]])


def _stage_errors(model: nn.Module, body: Body, stage: str, x: Tensor, generator: torch.Generator) -> list[float]:
    """Measure the error of a stage's output where its blocks hand on only the kept channels, for each of RATES.

    Whatever reads them is refitted: it reads the dropped channels as the best linear function of the kept ones.
    `x` is the stage's input (N, C, H, W), which loses the same channels where they are tied to the stage's.
    """
    blocks = [block for block in body.blocks if block.stage == stage]
    residuals = [take_apart(model, body, block) for block in blocks]
    is_tied = input_group(body, blocks[0]) == stage
    scores = _scores(model, body.groups[stage])
    wanted = [x]
    for residual in residuals:
        wanted.append(residual(wanted[-1]))
    half = len(x) // 2
    errors = [0.0]
    for rate in RATES[1:]:
        y = _pruned(x, x, scores, rate, generator) if is_tied else x
        for residual, dense in zip(residuals, wanted[1:], strict=True):
            y = _pruned(residual(y), dense, scores, rate, generator)
        errors.append(energy_error(y[half:], wanted[-1][half:]))
    return errors


def _scores(model: nn.Module, group: ChannelGroup) -> Tensor:
    return group_scores([(model.get_submodule(conv), model.get_submodule(norm)) for conv, norm in group.producers])


def _pruned(maps: Tensor, dense: Tensor, scores: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Return maps (N, C, H, W) whose dropped channels are told from the kept ones, fitted on the dense first half."""
    kept = kept_filters(scores, kept_channels(len(scores), rate))
    dropped = torch.ones_like(scores, dtype=torch.bool).index_fill(0, kept, False).nonzero().flatten()
    if not len(dropped):
        return maps
    guessed = maps.clone()
    guessed[:, dropped] = best_linear(maps[:, kept], dense[: len(dense) // 2, dropped], generator)
    return guessed
