"""Compresses networks by NORTON: it decomposes every planned filter, then prunes whole filters by their factors."""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from norton_det.compression.plan import CompressionPlan, PlanLike, kept_channels, load_plan, remaining_blocks, renamed
from norton_det.compression.saliency import Criterion, group_scores, kept_filters
from norton_det.layers.cp_conv import CPConv2d
from norton_det.layers.low_rank_linear import LowRankLinear
from norton_det.models.channels import Body, ChannelGroup, read_body
from norton_det.models.norms import unfreeze_batch_norms
from norton_det.models.parts import part_layers
from norton_det.models.persistence import Origin, describe, origin_of, with_origin
from norton_det.models.slicing import drop_blocks, slice_channels
from norton_det.ops.factors import nmse

Factorised = CPConv2d | LowRankLinear


@dataclass(frozen=True)
class LayerReport:
    """Reports one layer before and after: its weight's shape (K, C, kh, kw) or (out, in), its rank, and its NMSE."""

    name: str
    shape: tuple[int, ...]
    compressed_shape: tuple[int, ...]
    rank: int | None
    nmse: float | None
    parameters: int
    compressed_parameters: int


@dataclass(frozen=True)
class PartReport:
    """Reports a restored part of a model: its relative error ||y - y_dense|| / ||y_dense|| on held-back images; for
    the whole detector the sum of `imitation_losses` there."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class CompressionReport:
    """Reports what compression did. `layers` has a row for each convolution of the body and each factorised layer
    elsewhere, those of dropped blocks at the end. `kept` holds the dense model's channel indices that were kept, by
    channel group; `recovery` the restored parts, in the order of the data."""

    layers: tuple[LayerReport, ...]
    kept: dict[str, list[int]]
    recovery: tuple[PartReport, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, ready for JSON."""
        return asdict(self)


def compress(
    model: nn.Module,
    plan: PlanLike,
    criterion: Criterion = "pabs",
    rank: int | None = None,
) -> tuple[nn.Module, CompressionReport]:
    """Return a compressed copy of a torchvision ResNet, or of a detector with such a body, and the report.

    In a detector, the parts that the plan names are factorised too: 3x3 convolutions by filter, linear layers by SVD.
    `plan` and `rank` are as in `load_plan`.

    Frozen BatchNorm becomes trainable BatchNorm with the same statistics. Raises ValueError for a model that is not
    supported or is compressed already, a plan that does not fit it, an unknown criterion, or filters that cannot be
    decomposed (layer and indices are named).
    """
    dense_body = check_dense(model)
    plan = load_plan(plan, dense_body, rank)
    compressed = copy.deepcopy(model)
    unfreeze_batch_norms(compressed)
    body, own_plan = _drop(compressed, dense_body, plan)
    ranks = planned_ranks(compressed, body, own_plan)
    dense_shapes = {name: _weight_shape(compressed, name) for name in dict.fromkeys([*_producers(body), *ranks])}
    errors = {}
    for name, rank in tqdm(ranks.items(), desc="decompose", disable=not ranks):
        dense = compressed.get_submodule(name)
        factorised = _decomposed(name, dense, rank)
        compressed.set_submodule(name, factorised)
        errors[name] = nmse(dense.weight, factorised.weight)  # type: ignore[arg-type]
    kept = {name: _choose(compressed, group, own_plan, criterion) for name, group in body.groups.items()}
    for name, group in body.groups.items():
        if not group.fixed:
            slice_channels(compressed, group.producers, group.readers, kept[name])
    blocks = {new: old for old, new in remaining_blocks(dense_body, plan.dropped).items()}
    rows = [
        _layer_report(
            renamed(name.removeprefix(body.prefix), blocks), shape, compressed.get_submodule(name), errors.get(name)
        )
        for name, shape in dense_shapes.items()
    ]
    for name in _producers(dense_body):
        layer = name.removeprefix(body.prefix)
        if plan.drops(layer):
            rows.append(_dropped_report(layer, _weight_shape(model, name)))
    indices = {renamed(name, blocks): index.tolist() for name, index in kept.items()}
    origin = Origin(plan.to_dict(), indices, widths=_widths(dense_body))
    return with_origin(compressed, origin), CompressionReport(tuple(rows), indices)


def apply_structure(model: nn.Module, plan: PlanLike) -> nn.Module:
    """Give a network on the meta device, without numbers, the structure of a plan, in place, and return it.

    Raises ValueError as `compress` does.
    """
    dense_body = read_body(model)
    plan = load_plan(plan, dense_body)
    body, own_plan = _drop(model, dense_body, plan)
    for name, rank in planned_ranks(model, body, own_plan).items():
        model.set_submodule(name, factorise_empty(model.get_submodule(name), rank))
    for name, group in body.groups.items():
        if not group.fixed:
            count = kept_channels(group.width, own_plan.rates.get(name, 0.0))
            slice_channels(model, group.producers, group.readers, torch.arange(count, device="meta"))
    return with_origin(model, Origin(plan.to_dict(), widths=_widths(dense_body)))


def _drop(model: nn.Module, body: Body, plan: CompressionPlan) -> tuple[Body, CompressionPlan]:
    """Leave the plan's dropped blocks out of a model, in place; return its new body, and the plan for that."""
    if not plan.dropped:
        return body, plan
    drop_blocks(model, body, plan.dropped)
    return read_body(model), plan.renumbered(body)


def check_dense(model: nn.Module) -> Body:
    """Read the body of a model that is to be compressed.

    Raises ValueError for one that is compressed already, that is not supported, or that a file could not hold.
    """
    factorised = [name for name, module in model.named_modules() if isinstance(module, Factorised)]
    if factorised:
        raise ValueError(f"compressed already: {factorised[0]} holds factors, not a dense weight")
    if origin_of(model).plan is not None:
        raise ValueError("compressed already, by a plan that decomposes nothing")
    describe(model)
    return read_body(model)


def planned_ranks(model: nn.Module, body: Body, plan: CompressionPlan) -> dict[str, int]:
    """Return the rank of every layer that a plan factorises in a model, by the layer's name in the model."""
    of_parts = {layer: rank for part, rank in plan.parts.items() for layer in part_layers(model, part)}
    return {body.prefix + layer: rank for layer, rank in plan.ranks.items()} | of_parts


def _widths(body: Body) -> dict[str, int]:
    return {name: group.width for name, group in body.groups.items()}


def _producers(body: Body) -> Sequence[str]:
    return [conv for group in body.groups.values() for conv, _ in group.producers]


def _weight_shape(model: nn.Module, layer: str) -> tuple[int, ...]:
    return tuple(model.get_parameter(f"{layer}.weight").shape)


def _decomposed(name: str, layer: nn.Module, rank: int) -> Factorised:
    """Decompose a dense layer; the factors of a frozen one are frozen. Raises ValueError that names it."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    factors: Factorised
    try:
        if isinstance(layer, nn.Linear):
            factors = LowRankLinear.from_linear(layer, rank)
        else:
            factors = CPConv2d.from_conv(layer, rank)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return factors.requires_grad_(layer.weight.requires_grad)


def factorise_empty(layer: Any, rank: int) -> Factorised:
    """Return the factorised layer that takes a layer's place at a rank, on the meta device, without numbers."""
    if isinstance(layer, nn.Linear):
        with torch.device("meta"):
            return LowRankLinear(
                layer.in_features, layer.out_features, min(rank, layer.in_features, layer.out_features)
            )
    geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return CPConv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, rank, **geometry, bias=layer.bias is not None,
        device="meta",
    )  # fmt: skip


def _choose(model: nn.Module, group: ChannelGroup, plan: CompressionPlan, criterion: Criterion) -> Tensor:
    count = kept_channels(group.width, plan.rates.get(group.name, 0.0))
    if count == group.width:
        return torch.arange(group.width)
    members = [(model.get_submodule(conv), model.get_submodule(norm)) for conv, norm in group.producers]
    return kept_filters(group_scores(members, criterion), count)


def _dropped_report(name: str, shape: tuple[int, ...]) -> LayerReport:
    return LayerReport(name, shape, (0,) * len(shape), None, None, math.prod(shape), 0)


def _layer_report(name: str, shape: tuple[int, ...], layer: nn.Module, error: float | None) -> LayerReport:
    assert isinstance(layer, Factorised | nn.Conv2d)
    return LayerReport(
        name=name,
        shape=shape,
        compressed_shape=tuple(layer.weight.shape),
        rank=None if isinstance(layer, nn.Conv2d) else layer.rank,
        nmse=error,
        parameters=math.prod(shape),
        compressed_parameters=sum(p.numel() for p in layer.parameters()),
    )
