"""Refits a compressed part in closed form: what is linear in it is solved for, before anything is trained.

A part's last convolutions, whose outputs are added up, get the weights with which their sum is nearest to the dense
network's at the channels that were kept. They make up for channels that pruning took and for what the layers before
them lost, as far as a linear map can; ridge regression gives the change of each weight.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.compression.least_squares import least_squares, random_positions, sample, scale_and_bias, strided
from norton_det.compression.residual import Residual
from norton_det.layers.cp_conv import CPConv2d

Batches = Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]
"""The inputs of a part in the compressed network and in the dense one, maps (N, C, H, W), batch by batch."""


@torch.no_grad()
def refit_block(
    student: Residual, teacher: Sequence[Residual], kept: Sequence[int], batches: Batches, generator: torch.Generator
) -> None:
    """Refit the last convolution of a residual block, in place, and its shortcut's where it has one.

    `teacher` is the dense block, or the several that the block stands for; `kept` are the dense channels that it
    gives. A CP convolution keeps its factors and gets only a constant.
    """
    last, shortcut = student.pairs[-1], student.shortcut
    read, missing = [], []
    for (x,), (wanted,) in batches:
        for block in teacher[:-1]:
            wanted = block(wanted)
        lacks = teacher[-1].sum(wanted)[:, kept] - student.sum(x)
        positions = random_positions(lacks, generator)
        inputs = {last: student.inside(x)} | ({} if isinstance(shortcut, nn.Identity) else {shortcut: x})
        read.append({pair: sample(strided(maps, pair[0].stride), positions) for pair, maps in inputs.items()})
        missing.append(sample(lacks, positions))
    _add({pair: torch.cat([rows[pair] for rows in read]) for pair in read[0]}, torch.cat(missing))


@torch.no_grad()
def refit_laterals(student: Any, teacher: Any, batches: Batches, generator: torch.Generator) -> None:
    """Refit the 1x1 convolutions by which a feature pyramid reads the stages, in place."""
    read: list[list[Tensor]] = [[] for _ in student.inner_blocks]
    missing: list[list[Tensor]] = [[] for _ in student.inner_blocks]
    for stages, dense_stages in batches:
        for place, (x, wanted) in enumerate(zip(stages, dense_stages, strict=True)):
            lacks = teacher.inner_blocks[place](wanted) - student.inner_blocks[place](x)
            positions = random_positions(lacks, generator)
            read[place].append(sample(x, positions))
            missing[place].append(sample(lacks, positions))
    for lateral, rows, lacks_of in zip(student.inner_blocks, read, missing, strict=True):
        _add({lateral: torch.cat(rows)}, torch.cat(lacks_of))


def refit_convolution(conv: Any, norm: Any, maps: Tensor, positions: Tensor, targets: Tensor) -> None:
    """Change a convolution of stride 1, in place, to give the targets (n, K) at flat positions of maps (N, C, H, W).

    A dense convolution gets the least-squares change of its centre tap, which is all of a 1x1 one; the ridge draws
    towards the weight that it has. A CP convolution gets a scale for each filter. The constant goes into the mean of
    the BatchNorm behind.
    """
    rows = sample(conv(maps), positions)
    if isinstance(conv, CPConv2d):
        scale, bias = scale_and_bias(rows, targets)
        conv.channel.mul_(scale[:, None])
    else:
        change, bias = least_squares(sample(maps, positions), targets - rows)
        _change_centre(conv, change)
    norm.running_mean.sub_(bias)


def _add(read: dict[Any, Tensor], missing: Tensor) -> None:
    """Change convolutions, each with the BatchNorm behind it where there is one, so that their sum gains the missing
    rows (n, K). Their centre taps read rows (n, C)."""
    dense = {pair: rows for pair, rows in read.items() if isinstance(pair[0], nn.Conv2d)}
    bias = missing.mean(dim=0)
    if dense:
        weight, bias = least_squares(torch.cat(list(dense.values()), dim=1), missing)
        changes = weight.split([rows.shape[1] for rows in dense.values()], dim=1)
        for pair, change in zip(dense, changes, strict=True):
            conv, *norm = pair
            for layer in norm:
                _absorb(conv, layer)
            _change_centre(conv, change)
    next(iter(read))[-1].bias.add_(bias)


def _change_centre(conv: Any, change: Tensor) -> None:
    """Add a 1x1 convolution's weight (K, C) to the centre of a convolution's kernel."""
    row, column = (side // 2 for side in conv.kernel_size)
    conv.weight[:, :, row, column].add_(change)


def _absorb(conv: nn.Conv2d, norm: Any) -> None:
    """Move the scale of a BatchNorm into the convolution before it; what both compute together stays the same."""
    deviation = (norm.running_var + norm.eps).sqrt()
    scale = norm.weight / deviation
    conv.weight.mul_(scale[:, None, None, None])
    if conv.bias is not None:
        conv.bias.mul_(scale)
    norm.bias.sub_(scale * norm.running_mean)
    norm.running_mean.zero_()
    norm.weight.copy_(deviation)
