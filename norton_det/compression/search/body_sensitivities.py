"""What compression would cost a ResNet-50's features, measured on images: a table of errors by option.

An error is a share of energy, |y' - y|^2 / |y|^2, of the stage outputs that are used, averaged over them: what is
left behind the best least-squares refit, that is, what recovery or fine-tuning will hardly get back. Refits are
fitted on one half of the images, errors are measured on the other. The maps of one block or stage are held at a time,
beside the stage outputs of the second half.
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
from norton_det.models.resnet import BLOCK_NAMES, GROUPS, STAGES

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
    """Errors of the stage outputs: by bottleneck, one for each of OPTIONS; by pruned stage, one for each of RATES.

    Errors of a detector's parts' own outputs: by part, one for each of its ranks; empty where not measured.
    """

    blocks: Mapping[str, Sequence[float]]
    stages: Mapping[str, Sequence[float]]
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)


@torch.no_grad()
def measure_body(
    body: nn.Module,
    images: Tensor,
    outputs: Sequence[str],
    criterion: Criterion,
    generator: torch.Generator,
    progress: Callable[[str], object] = lambda name: None,
) -> Sensitivities:
    """Sensitivities of a dense ResNet-50 with BatchNorm2d, on normalised images (N, 3, H, W), N at least 2.

    `body` has torchvision's module names. `outputs`: the stages whose outputs are used. `progress` is told each
    block and stage that is done.
    """
    network: Any = body
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    half = len(x) // 2
    all_ends = _stage_outputs(body, BLOCK_NAMES, x[half:])
    ends = {stage: all_ends[stage] for stage in outputs}
    blocks, stages = {}, {}
    for name in BLOCK_NAMES:
        stage = name.split(".")[0]
        taken = _enough(x)
        few = torch.cat([x[:taken], x[half : half + taken]])
        few_ends = {later: end[:taken] for later, end in ends.items()}
        if stage in PRUNED_STAGES and stage not in stages:
            stages[stage] = _stage_errors(body, stage, few, few_ends, generator)
            progress(stage)
        blocks[name] = _block_errors(body, name, few, few_ends, criterion, generator)
        x = body.get_submodule(name)(x)
        progress(name)
    return Sensitivities(blocks, stages)


def _enough(maps: Tensor) -> int:
    """How many images of each half are worth their time: large maps give enough rows with few."""
    return min(len(maps) // 2, max(LEAST_IMAGES, math.ceil(ROWS / maps[0, 0].numel())))


def prepare(images: Sequence[Tensor], size: int, device: torch.device) -> Tensor:
    """Centre crops (N, 3, size, size), normalised as ImageNet's, of RGB images (3, H, W) in 0 to 1."""
    imagenet: Any = ResNet50_Weights.IMAGENET1K_V1
    preprocess = imagenet.transforms(crop_size=size, resize_size=size)
    return torch.stack([preprocess(image) for image in images]).to(device, memory_format=torch.channels_last)


def relative_error(output: Tensor, target: Tensor) -> float:
    """|output - target|^2 / |target|^2; 0 where both are zero."""
    return float((output - target).square().sum() / target.square().sum().clamp_min(1e-30))


def _stage_outputs(body: nn.Module, blocks: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """From the input of the first of `blocks` to the outputs of their stages."""
    outputs = {}
    for name in blocks:
        x = outputs[name.split(".")[0]] = body.get_submodule(name)(x)
    return outputs


def _end_error(body: nn.Module, name: str, output: Tensor, ends: Mapping[str, Tensor]) -> float:
    """The error at the ends, mean over them, where the block `name` gives `output`."""
    later = BLOCK_NAMES[BLOCK_NAMES.index(name) + 1 :]
    outputs = {name.split(".")[0]: output} | _stage_outputs(body, later, output)
    return sum(relative_error(outputs[stage], end) for stage, end in ends.items() if stage in outputs) / len(ends)


def _block_errors(
    body: nn.Module,
    name: str,
    x: Tensor,
    ends: Mapping[str, Tensor],
    criterion: Criterion,
    generator: torch.Generator,
) -> list[float]:
    """One for each of OPTIONS: the error of the block's output times its gain.

    The gain says how many times larger an error of this output is at the ends. It is measured once, on the option
    whose error is the median.
    """
    block: Any = body.get_submodule(name)
    half = len(x) // 2
    output = block(x)
    inside = block.relu(block.bn1(block.conv1(x)))
    identity = (x if block.downsample is None else block.downsample(x))[half:]
    dense = block.conv2(inside[:half])
    moments = _moments(dense)
    target = block.conv3(block.relu(block.bn2(dense)))
    positions = random_positions(target, ROWS, generator)
    target = sample(target, positions)
    decomposed = {rank: _decomposed(block, rank, criterion) for rank in RANKS}

    def reduced_output(option: Option) -> Tensor:
        rank, rate = option
        reduced, first, second = decomposed[rank].reduced(rate)
        y = reduced.conv2(inside[:half, first])
        _match_moments(reduced.bn2, y, *(moment[second] for moment in moments))
        refit_pointwise(reduced.conv3, reduced.bn3, sample(reduced.relu(reduced.bn2(y)), positions), target)
        y = reduced.relu(reduced.bn2(reduced.conv2(inside[half:, first])))
        changed: Tensor = reduced.relu(reduced.bn3(reduced.conv3(y)) + identity)
        return changed

    errors = [
        0.0 if option == UNCHANGED else relative_error(reduced_output(option), output[half:]) for option in OPTIONS
    ]
    middle = errors.index(median_low(errors))
    gain = _end_error(body, name, reduced_output(OPTIONS[middle]), ends) / max(errors[middle], 1e-30)
    return [gain * error for error in errors]


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


def _stage_errors(
    body: nn.Module, stage: str, x: Tensor, ends: Mapping[str, Tensor], generator: torch.Generator
) -> list[float]:
    """One for each of RATES: the error at the ends where this stage's blocks hand on the kept channels alone.

    Whatever reads them is refitted: it reads the dropped channels as the best linear function of the kept ones.
    `x` is the stage's input (N, C, H, W).
    """
    half = len(x) // 2
    blocks = [name for name in BLOCK_NAMES if name.startswith(stage)]
    producers = [(body.get_submodule(conv), body.get_submodule(norm)) for conv, norm in GROUPS[stage].producers]
    scores = group_scores(producers)
    errors = []
    for rate in RATES:
        kept = kept_filters(scores, kept_channels(len(scores), rate))
        dropped = torch.ones_like(scores, dtype=torch.bool).index_fill(0, kept, False).nonzero().flatten()
        y, dense = x, x[:half]
        for name in blocks if len(dropped) else ():
            y, dense = body.get_submodule(name)(y), body.get_submodule(name)(dense)
            positions = random_positions(dense, ROWS, generator)
            weight, bias = least_squares(sample(y[:half, kept], positions), sample(dense[:, dropped], positions))
            y[:, dropped] = nn.functional.conv2d(y[:, kept], weight[:, :, None, None], bias)
        errors.append(_end_error(body, blocks[-1], y[half:], ends) if len(dropped) else 0.0)
    return errors
