"""Measures on a residual block's own inputs what compression would cost it: takes it apart, changes it and refits it.

Refits are fitted on the first half of the maps, errors are measured on the second.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from norton_det.compression.least_squares import best_linear, energy_error, random_positions, sample, strided
from norton_det.compression.plan import kept_channels
from norton_det.compression.refit import refit_convolution
from norton_det.compression.residual import Residual, chained
from norton_det.compression.saliency import Criterion, group_scores, kept_filters
from norton_det.compression.search.options import DROPPED, UNCHANGED, Option
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.slicing import slice_channels


def block_errors(
    block: Residual, x: Tensor, options: Sequence[Option], criterion: Criterion, generator: torch.Generator
) -> tuple[list[float], Tensor]:
    """Measure the error of a block's output under each option; return these, and the output at the median error.

    `x` is the block's input (N, C, H, W). Behind the convolution before the last, the BatchNorm gets the moments that
    the dense one had; the last convolution is refitted. Where the block is dropped, its input, refitted by a 1x1
    convolution, takes its output's place.
    """
    half = len(x) // 2
    output, identity = block(x), block.shortcut(x)
    *first, middle, last = block.pairs
    inside = chained(first, x)
    dense = middle[0](inside[:half])
    moments = _moments(dense)
    target = last[0](relu(middle[1](dense)))
    positions = random_positions(target, generator)
    target = sample(target, positions)
    decomposed = {rank: _decomposed(block, rank, criterion) for rank in dict.fromkeys(rank for rank, _ in options)}

    def changed(option: Option, part: slice) -> Tensor:
        if option == DROPPED:
            return relu(x[part] + best_linear(x, (output - x)[:half], generator)[part])
        rank, rate = option
        pairs, (*before, own) = decomposed[rank].pruned(rate)
        read = inside[:, before[0]] if before else inside
        (conv, norm), (last_conv, last_norm) = pairs[-2:]
        y = conv(read[:half])
        _match_moments(norm, y, *(moment[own] for moment in moments))
        refit_convolution(last_conv, last_norm, relu(norm(y)), positions, target)
        return relu(pairs[-1](chained([pairs[-2]], read[part])) + identity[part])

    measured = slice(half, None)
    errors = [
        0.0 if option == UNCHANGED else energy_error(changed(option, measured), output[measured])
        for option in options
    ]
    return errors, changed(options[errors.index(median_low(errors))], slice(None))


def handed_on(block: Residual, x: Tensor, distorted: Tensor, generator: torch.Generator) -> float:
    """Measure how much of an error in its input a block hands on: its output's error over its input's.

    `x` is the dense input, `distorted` the other, both (N, C, H, W). The shortcut, the first and the last convolution
    are refitted: to each a 1x1 convolution is added.
    """
    half = len(x) // 2
    first, *between, last = block.pairs

    def refitted(y: Tensor, inputs: Tensor, wanted: Tensor) -> Tensor:
        return y + best_linear(inputs, (wanted - y)[:half], generator)

    wanted, identity = block.shortcut(x), block.shortcut(distorted)
    if not isinstance(block.shortcut, nn.Identity):
        identity = refitted(identity, strided(distorted, block.shortcut[0].stride), wanted)
    dense_inner = first(x)
    maps = chained(between, relu(refitted(first(distorted), strided(distorted, first[0].stride), dense_inner)))
    dense = last(chained(between, relu(dense_inner))) + wanted
    output = refitted(last(maps), maps, dense - identity) + identity
    error = energy_error(relu(output)[half:], relu(dense)[half:])
    return error / max(energy_error(distorted[half:], x[half:]), 1e-30)


@dataclass(frozen=True)
class _Decomposed:
    """Holds a block's pairs, with decomposed spatial convolutions, and the scores of its inner channels."""

    pairs: nn.ModuleList
    scores: tuple[Tensor, ...]

    def pruned(self, rate: float) -> tuple[Any, list[Tensor]]:
        """Return a pruned copy, and which outputs of each convolution but the last were kept."""
        pairs = copy.deepcopy(self.pairs)
        kept = [kept_filters(scores, kept_channels(len(scores), rate)) for scores in self.scores]
        for place, indices in enumerate(kept):
            slice_channels(pairs, [(f"{place}.0", f"{place}.1")], [f"{place + 1}.0"], indices)
        return pairs, kept


def _decomposed(block: Residual, rank: int | None, criterion: Criterion) -> _Decomposed:
    pairs: Any = copy.deepcopy(block.pairs)
    if rank is not None:
        for place in block.spatial:
            pairs[place][0] = CPConv2d.from_conv(pairs[place][0], rank)
    return _Decomposed(pairs, tuple(group_scores([(conv, norm)], criterion) for conv, norm in pairs[:-1]))


def _moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (K,) of the channels of maps (N, K, H, W)."""
    variance, mean = torch.var_mean(maps, dim=(0, 2, 3), correction=0)
    return mean, variance.sqrt()


def _match_moments(norm: Any, y: Tensor, dense_mean: Tensor, dense_deviation: Tensor) -> None:
    """Change a BatchNorm's statistics, in place, so that its output on y has the moments of the dense one."""
    mean, deviation = _moments(y)
    ratio = (deviation / dense_deviation.clamp_min(1e-12)).clamp(1e-3, 1e3)
    norm.running_mean = mean - ratio * (dense_mean - norm.running_mean)
    norm.running_var = ratio.square() * (norm.running_var + norm.eps) - norm.eps
