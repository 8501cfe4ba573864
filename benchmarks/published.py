"""The pruning of the published NORTON code, mistakes and all, written from a description of what it does.

It is here to be compared with `norton_det.compression.compress`, never to be used:

- the angle between two filters saturates from rank 2 on, and a right angle counts as none;
- the order in which filters are removed is read as if it were a score for each filter;
- the outputs of `conv3` and of the shortcut, which are added, are chosen separately, and the shortcut's inputs
  are taken at the indices that `conv2` keeps;
- the stem and the BatchNorm behind a 3x3 convolution are not copied: they stay as a new network has them.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from norton_det.compression.compress import apply_structure, compress
from norton_det.compression.plan import CompressionPlan
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.channels import read_body
from norton_det.models.initial import initialise
from norton_det.ops.factors import CPFactors
from norton_det.ops.similarity import greedy_selection


def published_compress(resnet: ResNet, plan: CompressionPlan) -> ResNet:
    """A pruned copy of a ResNet-50, its 3x3 convolutions decomposed as ours are.

    What is not copied comes from the global random generator.
    """
    decomposed, _ = compress(resnet, CompressionPlan(plan.ranks))
    pruned = initialise(apply_structure(copy.deepcopy(resnet).to("meta"), plan))
    inputs = torch.arange(pruned.conv1.out_channels)  # of the block, as its predecessor's conv3 left them
    for block in (block.name for block in read_body(resnet).blocks):
        old, new = decomposed.get_submodule(block), pruned.get_submodule(block)
        first = published_kept(old.conv1, new.conv1.out_channels)
        second = published_kept(old.conv2, new.conv2.out_channels)
        third = published_kept(old.conv3, new.conv3.out_channels)
        _copy(old.conv1, new.conv1, first, inputs)
        _copy(old.conv2, new.conv2, second, first)
        _copy(old.conv3, new.conv3, third, second)
        _copy_norm(old.bn1, new.bn1, first)
        _copy_norm(old.bn3, new.bn3, third)
        if new.downsample is not None:
            shortcut = published_kept(old.downsample[0], new.downsample[0].out_channels)
            columns = second if len(second) < old.conv2.out_channels else torch.arange(len(inputs))
            _copy(old.downsample[0], new.downsample[0], shortcut, columns)
            _copy_norm(old.downsample[1], new.downsample[1], shortcut)
        inputs = third
    pruned.fc.load_state_dict({"weight": decomposed.fc.weight[:, inputs], "bias": decomposed.fc.bias})
    return pruned.train(resnet.training)


def published_kept(conv: nn.Module, count: int) -> Tensor:
    """Indices (count,), ascending, of the filters that stay: those of the highest scores."""
    if isinstance(conv, CPConv2d):
        scores = greedy_selection(published_distances(conv.factors))  # the order of removal: these are no scores
    else:
        scores = conv.weight.detach().flatten(1).norm(dim=1)
    return scores.argsort(stable=True)[len(scores) - count :].sort().values


def published_distances(factors: CPFactors) -> Tensor:
    """Distances (K, K): the published angle of each mode, summed."""
    return torch.stack([published_angles(factor) for factor in factors.modes]).sum(dim=0)


def published_angles(factor: Tensor) -> Tensor:
    """Angles (K, K) of one mode's factor (K, n, R): asin ||Qa - Qb Qb^T Qa||, at most 1, modulo pi/2."""
    bases = torch.linalg.qr(factor.detach().double()).Q  # (K, n, q)
    count, rows, columns = bases.shape
    stacked = bases.mT.reshape(count * columns, rows)
    cosines = (stacked @ stacked.T).view(count, columns, count, columns)
    # ||Qa - Qb Qb^T Qa||^2 = q - ||Qa^T Qb||^2
    sines = (columns - cosines.square().sum(dim=(1, 3))).clamp(0, 1).sqrt()
    angles = sines.asin() % (math.pi / 2)
    upper = angles.triu(diagonal=1)
    return upper + upper.T


def _copy(old: nn.Module, new: nn.Module, rows: Tensor, columns: Tensor) -> None:
    """Fill the first filters and inputs of `new` with those of `old` at rows and columns; the rest stays."""
    if isinstance(old, CPConv2d):
        assert isinstance(new, CPConv2d)
        new.channel.data[:, :, : len(columns)] = old.channel.data[:, rows][:, :, columns]
        new.vertical.data[:] = old.vertical.data[:, rows]
        new.horizontal.data[:] = old.horizontal.data[:, rows]
    else:
        new.weight.data[:, : len(columns)] = old.weight.data[rows][:, columns]


def _copy_norm(old: nn.BatchNorm2d, new: nn.BatchNorm2d, rows: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new, name).data[:] = getattr(old, name).data[rows]
