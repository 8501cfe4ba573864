"""The method: decompose every planned filter, then prune whole filters by their factors."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from norton_det.compression.plan import CompressionPlan, kept_channels
from norton_det.compression.prune import slice_channels
from norton_det.compression.saliency import Criterion, group_scores, kept_filters
from norton_det.layers.cp_conv import CPConv2d
from norton_det.layers.low_rank_linear import LowRankLinear
from norton_det.models.detectors import BODY, LATERALS, part_layers
from norton_det.models.norms import unfreeze_batch_norms
from norton_det.models.resnet import GROUPS, STAGES, ChannelGroup
from norton_det.ops.cp import nmse


@dataclass(frozen=True)
class LayerReport:
    """One layer before and after: weight shape (K, C, kh, kw) or (out, in), rank, NMSE of its decomposition."""

    name: str
    shape: tuple[int, ...]
    compressed_shape: tuple[int, ...]
    rank: int | None
    nmse: float | None
    parameters: int
    compressed_parameters: int


@dataclass(frozen=True)
class PartReport:
    """A part of a model restored: its relative error ||y - y_dense|| / ||y_dense|| on held-back images."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class CompressionReport:
    """What compression did: a row a convolution of the body and a factorised layer elsewhere; by channel
    group, the dense model's indices that were kept; and the parts that were restored, in the order of the data."""

    layers: tuple[LayerReport, ...]
    kept: dict[str, list[int]]
    recovery: tuple[PartReport, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return asdict(self)


def compress(
    model: nn.Module,
    plan: CompressionPlan,
    criterion: Criterion = "pabs",
    progress: Callable[[str], object] = lambda layer: None,
) -> tuple[nn.Module, CompressionReport]:
    """A compressed copy of a torchvision ResNet-50, or of an R-CNN with such a body, and the report.

    Of an R-CNN the parts that the plan names are factorised too: 3x3 convolutions by filter, linear layers by SVD.

    Frozen BatchNorm becomes trainable BatchNorm with the same statistics. `progress` is told each layer
    that has been decomposed. Raises ValueError for another model, an unknown criterion, a group left without
    filters, or filters that cannot be decomposed (layer and indices are named).
    """
    prefix = body_prefix(model)
    compressed = copy.deepcopy(model)
    unfreeze_batch_norms(compressed)
    body = [prefix + conv for group in GROUPS.values() for conv, _ in group.producers]
    ranks = {prefix + layer: rank for layer, rank in plan.ranks.items()} | {
        layer: rank for part, rank in plan.parts.items() for layer in part_layers(compressed, part)
    }
    dense_shapes = {
        layer: tuple(compressed.get_parameter(f"{layer}.weight").shape) for layer in dict.fromkeys([*body, *ranks])
    }
    errors = {}
    for layer, rank in ranks.items():
        errors[layer] = _decompose(compressed, layer, rank)
        progress(layer)
    kept = {name: _choose(compressed, prefix, group, plan, criterion) for name, group in GROUPS.items()}
    for name, group in GROUPS.items():
        producers = [(prefix + conv, prefix + norm) for conv, norm in group.producers]
        slice_channels(compressed, producers, _consumers(group, prefix), kept[name])
    rows = [
        _layer_report(layer.removeprefix(prefix), shape, compressed.get_submodule(layer), errors.get(layer))
        for layer, shape in dense_shapes.items()
    ]
    return compressed, CompressionReport(tuple(rows), {name: index.tolist() for name, index in kept.items()})


def body_prefix(model: nn.Module) -> str:
    """Where the ResNet-50 stands in a model: "" in a classifier, "backbone.body." in a detector.

    Raises ValueError for anything else, and for a ResNet-50 that is already compressed.
    """
    if isinstance(model, ResNet):
        prefix = ""
    elif isinstance(model, GeneralizedRCNN):
        prefix = BODY
    else:
        raise ValueError(f"cannot compress a {type(model).__name__}: expected a ResNet-50 or an R-CNN on one")
    for group in GROUPS.values():
        for conv, _ in group.producers:
            try:
                layer = model.get_submodule(prefix + conv)
            except AttributeError:
                raise ValueError(f"cannot compress: {prefix + conv} is missing, this is no ResNet-50") from None
            if not isinstance(layer, nn.Conv2d):
                raise ValueError(f"cannot compress: {prefix + conv} is a {type(layer).__name__}, not a dense Conv2d")
    return prefix


def _decompose(model: nn.Module, name: str, rank: int) -> float:
    """Put a factorised layer in a dense one's place; returns the NMSE."""
    layer = model.get_submodule(name)
    try:
        if isinstance(layer, nn.Linear):
            factorised: LowRankLinear | CPConv2d = LowRankLinear.from_linear(layer, rank)
        else:
            assert isinstance(layer, nn.Conv2d)
            factorised = CPConv2d.from_conv(layer, rank)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    model.set_submodule(name, factorised)
    return nmse(layer.weight, factorised.weight)


def _choose(
    model: nn.Module, prefix: str, group: ChannelGroup, plan: CompressionPlan, criterion: Criterion
) -> Tensor:
    members = [
        (model.get_submodule(prefix + conv), model.get_submodule(prefix + norm)) for conv, norm in group.producers
    ]
    width = len(members[0][1].weight)  # type: ignore[arg-type]
    count = kept_channels(width, plan.rates.get(group.name, 0.0))
    if count < 1:
        raise ValueError(f"plan: rate {plan.rates[group.name]} leaves {group.name} without filters")
    if count == width:
        return torch.arange(width)
    return kept_filters(group_scores(members, criterion), count)


def _consumers(group: ChannelGroup, prefix: str) -> list[str]:
    """Full names of the layers that read a group; in a detector the pyramid reads the stages, not `fc`."""
    if not prefix:
        return list(group.consumers)
    inside = [prefix + consumer for consumer in group.consumers if consumer != "fc"]
    return [*inside, LATERALS[STAGES.index(group.name)]] if group.name in STAGES else inside


def _layer_report(name: str, shape: tuple[int, ...], layer: nn.Module, error: float | None) -> LayerReport:
    assert isinstance(layer, CPConv2d | LowRankLinear | nn.Conv2d)
    return LayerReport(
        name=name,
        shape=shape,
        compressed_shape=tuple(layer.weight.shape),
        rank=None if isinstance(layer, nn.Conv2d) else layer.rank,
        nmse=error,
        parameters=math.prod(shape),
        compressed_parameters=sum(p.numel() for p in layer.parameters()),
    )
