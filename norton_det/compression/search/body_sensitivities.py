"""What compression would cost a ResNet-50's features, measured on images: a table of errors by option.

An error is a share of energy, |y' - y|^2 / |y|^2, of a block's or stage's own output on the dense network's inputs:
what the best least-squares refit leaves, and recovery or fine-tuning will hardly get back. It counts for what reaches
the ends of this and the later stages through blocks that are refitted, too. Refits are fitted on one half of the
images, errors are measured on the other. The maps of one block or stage are held at a time.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

from norton_det.compression.plan import kept_channels
from norton_det.compression.prune import slice_channels
from norton_det.compression.saliency import Criterion, group_scores, kept_filters
from norton_det.compression.search.least_squares import least_squares, random_positions, refit_pointwise, sample
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.resnet import BLOCK_NAMES, GROUPS, LAST_BLOCKS, STAGES

RANKS = (None, 1, 2, 3, 4)
"""What a 3x3 convolution may become; None: it stays dense."""
RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
"""Pruning rates that are tried."""
PRUNED_STAGES = STAGES[:3]
"""The stages whose outputs may be pruned; the stem's and the last stage's stay whole, as in the paper's plans."""
ROWS = 8192
"""Positions that a refit is fitted on, over all images."""
LEAST_IMAGES = 8
"""Images of each half that are used at least, if there are as many."""

Option = tuple[int | None, float]
"""The rank of a bottleneck's 3x3 convolution, and the pruning rate of its two inner widths."""
OPTIONS: tuple[Option, ...] = tuple((rank, rate) for rank in RANKS for rate in RATES)
UNCHANGED: Option = (None, 0.0)


@dataclass(frozen=True)
class Sensitivities:
    """Errors at the stages' ends: by bottleneck, one for each of OPTIONS; by pruned stage, one for each of RATES.

    Errors of a detector's parts' own outputs: by part, one for each of its ranks; empty where not measured.
    """

    blocks: Mapping[str, Sequence[float]]
    stages: Mapping[str, Sequence[float]]
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)


@torch.no_grad()
def measure_body(
    body: nn.Module,
    images: Tensor,
    criterion: Criterion,
    generator: torch.Generator,
    progress: Callable[[str], object] = lambda name: None,
) -> Sensitivities:
    """Sensitivities of a dense ResNet-50 with BatchNorm2d, on normalised images (N, 3, H, W), N at least 2.

    `body` has torchvision's module names. `progress` is told each block and stage that is done.
    """
    network: Any = body
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    blocks, stages, handed_on = {}, {}, {}
    before: tuple[Tensor, Tensor] | None = None
    for name in BLOCK_NAMES:
        block, stage = body.get_submodule(name), name.split(".")[0]
        taken = _enough(x)
        few = _of_each_half(x, taken)
        if before is not None:
            handed_on[name] = _handed_on(block, *before, generator)
        if stage in PRUNED_STAGES and stage not in stages:
            stages[stage] = _stage_errors(body, stage, few, generator)
            progress(stage)
        blocks[name], middle = _block_errors(block, few, criterion, generator)
        x = block(x)
        before = _of_each_half(x, taken), middle
        progress(name)
    weights = _weights(handed_on)
    for name, errors in blocks.items():
        blocks[name] = [weights[name] * error for error in errors]
    for stage, last in zip(stages, LAST_BLOCKS, strict=False):
        stages[stage] = [weights[last] * error for error in stages[stage]]
    return Sensitivities(blocks, stages)


def _weights(handed_on: Mapping[str, float]) -> dict[str, float]:
    """By block, what an error of its output counts for: what of it reaches the four ends, mean over them."""
    weights, weight = {}, 0.0
    for name in reversed(BLOCK_NAMES):
        weight += (name in LAST_BLOCKS) / len(LAST_BLOCKS)
        weights[name] = weight
        weight *= handed_on.get(name, 0.0)
    return weights


def _enough(maps: Tensor) -> int:
    """How many images of each half are worth their time: large maps give enough rows with few."""
    return min(len(maps) // 2, max(LEAST_IMAGES, math.ceil(ROWS / maps[0, 0].numel())))


def _of_each_half(maps: Tensor, taken: int) -> Tensor:
    """The first maps of both halves."""
    half = len(maps) // 2
    return torch.cat([maps[:taken], maps[half : half + taken]])


def prepare(images: Sequence[Tensor], size: int, device: torch.device) -> Tensor:
    """Centre crops (N, 3, size, size), normalised as ImageNet's, of RGB images (3, H, W) in 0 to 1."""
    imagenet: Any = ResNet50_Weights.IMAGENET1K_V1
    preprocess = imagenet.transforms(crop_size=size, resize_size=size)
    return torch.stack([preprocess(image) for image in images]).to(device, memory_format=torch.channels_last)


def relative_error(output: Tensor, target: Tensor) -> float:
    """|output - target|^2 / |target|^2; 0 where both are zero."""
    return float((output - target).square().sum() / target.square().sum().clamp_min(1e-30))


def _block_errors(
    block: Any, x: Tensor, criterion: Criterion, generator: torch.Generator
) -> tuple[list[float], Tensor]:
    """The errors of the block's output, one for each of OPTIONS, and the output at the median of them.

    `x` is the block's input (N, C, H, W).
    """
    half = len(x) // 2
    output = block(x)
    inside = block.relu(block.bn1(block.conv1(x)))
    identity = x if block.downsample is None else block.downsample(x)
    dense = block.conv2(inside[:half])
    moments = _moments(dense)
    target = block.conv3(block.relu(block.bn2(dense)))
    positions = random_positions(target, ROWS, generator)
    target = sample(target, positions)
    decomposed = {rank: _decomposed(block, rank, criterion) for rank in RANKS}

    def reduced_output(option: Option, part: slice) -> Tensor:
        rank, rate = option
        reduced, first, second = decomposed[rank].reduced(rate)
        y = reduced.conv2(inside[:half, first])
        _match_moments(reduced.bn2, y, *(moment[second] for moment in moments))
        refit_pointwise(reduced.conv3, reduced.bn3, sample(reduced.relu(reduced.bn2(y)), positions), target)
        y = reduced.relu(reduced.bn2(reduced.conv2(inside[part, first])))
        changed: Tensor = reduced.relu(reduced.bn3(reduced.conv3(y)) + identity[part])
        return changed

    measured = slice(half, None)
    errors = [
        0.0 if option == UNCHANGED else relative_error(reduced_output(option, measured), output[measured])
        for option in OPTIONS
    ]
    return errors, reduced_output(OPTIONS[errors.index(median_low(errors))], slice(None))


def _handed_on(block: Any, x: Tensor, distorted: Tensor, generator: torch.Generator) -> float:
    """The error of a block's output over that of its distorted input, where its 1x1 convolutions are refitted."""
    half = len(x) // 2

    def refitted(y: Tensor, inputs: Tensor, wanted: Tensor) -> Tensor:
        return y + _fitted(inputs, (wanted - y)[:half], generator)

    def strided(layer: Any) -> Tensor:
        return distorted[:, :, :: layer.stride[0], :: layer.stride[1]]

    def inner(y: Tensor) -> Tensor:
        maps: Tensor = block.bn1(block.conv1(y))
        return maps

    def outer(y: Tensor) -> tuple[Tensor, Tensor]:
        maps = block.relu(block.bn2(block.conv2(block.relu(y))))
        return maps, block.bn3(block.conv3(maps))

    identity, wanted = distorted, x
    if block.downsample is not None:
        wanted = block.downsample(x)
        identity = refitted(block.downsample(distorted), strided(block.downsample[0]), wanted)
    dense_inner = inner(x)
    maps, y = outer(refitted(inner(distorted), strided(block.conv1), dense_inner))
    dense = outer(dense_inner)[1] + wanted
    output = refitted(y, maps, dense - identity) + identity
    error = relative_error(block.relu(output)[half:], block.relu(dense)[half:])
    return error / max(relative_error(distorted[half:], x[half:]), 1e-30)


def _fitted(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    """The linear function of maps (N, C, H, W) that gives the targets (n, K, H, W) of the first n best."""
    positions = random_positions(targets, ROWS, generator)
    weight, bias = least_squares(sample(inputs[: len(targets)], positions), sample(targets, positions))
    return nn.functional.conv2d(inputs, weight[:, :, None, None], bias)


def _moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (K,) of the channels of maps (N, K, H, W)."""
    variance, mean = torch.var_mean(maps, dim=(0, 2, 3), correction=0)
    return mean, variance.sqrt()


def _match_moments(norm: Any, y: Tensor, dense_mean: Tensor, dense_deviation: Tensor) -> None:
    """Change a BatchNorm's statistics, in place, so that its output on y has the moments that the dense one's had."""
    mean, deviation = _moments(y)
    ratio = (deviation / dense_deviation.clamp_min(1e-12)).clamp(1e-3, 1e3)
    norm.running_mean = mean - ratio * (dense_mean - norm.running_mean)
    norm.running_var = ratio.square() * (norm.running_var + norm.eps) - norm.eps


@dataclass(frozen=True)
class _Decomposed:
    """A bottleneck whose 3x3 convolution has been decomposed, and the scores of its two inner groups."""

    block: Any
    scores: tuple[Tensor, Tensor]

    def reduced(self, rate: float) -> tuple[Any, Tensor, Tensor]:
        """A pruned copy, and which outputs of its first and second convolution were kept."""
        block = copy.deepcopy(self.block)
        first, second = (kept_filters(scores, kept_channels(len(scores), rate)) for scores in self.scores)
        slice_channels(block, [("conv1", "bn1")], ["conv2"], first)
        slice_channels(block, [("conv2", "bn2")], ["conv3"], second)
        return block, first, second


def _decomposed(block: Any, rank: int | None, criterion: Criterion) -> _Decomposed:
    changed = copy.deepcopy(block)
    if rank is not None:
        changed.conv2 = CPConv2d.from_conv(block.conv2, rank)
    first, second = (
        group_scores([(getattr(changed, conv), getattr(changed, norm))], criterion)
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"))
    )
    return _Decomposed(changed, (first, second))


def _stage_errors(body: nn.Module, stage: str, x: Tensor, generator: torch.Generator) -> list[float]:
    """One for each of RATES: the error of the stage's output where its blocks hand on the kept channels alone.

    Whatever reads them is refitted: it reads the dropped channels as the best linear function of the kept ones.
    `x` is the stage's input (N, C, H, W).
    """
    half = len(x) // 2
    blocks = [body.get_submodule(name) for name in BLOCK_NAMES if name.startswith(stage)]
    producers = [(body.get_submodule(conv), body.get_submodule(norm)) for conv, norm in GROUPS[stage].producers]
    scores = group_scores(producers)
    wanted = [x]
    for block in blocks:
        wanted.append(block(wanted[-1]))
    errors = []
    for rate in RATES:
        kept = kept_filters(scores, kept_channels(len(scores), rate))
        dropped = torch.ones_like(scores, dtype=torch.bool).index_fill(0, kept, False).nonzero().flatten()
        if not len(dropped):
            errors.append(0.0)
            continue
        y = x
        for block, dense in zip(blocks, wanted[1:], strict=True):
            y = block(y)
            y[:, dropped] = _fitted(y[:, kept], dense[:half, dropped], generator)
        errors.append(relative_error(y[half:], wanted[-1][half:]))
    return errors
