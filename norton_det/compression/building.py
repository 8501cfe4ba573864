"""Builds networks of any structure and plan with random weights."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from norton_det.compression.compress import Factorised, apply_structure, factorise_empty
from norton_det.compression.plan import PlanLike, load_plan
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.categories import categories_of
from norton_det.models.channels import read_body
from norton_det.models.fit import fit, read_geometry, set_geometry
from norton_det.models.initial import initialise
from norton_det.models.parts import part_layers
from norton_det.models.persistence import Origin, dropped_blocks, origin_of, with_origin
from norton_det.models.recognise import structure_of
from norton_det.models.slicing import scale_body, slice_channels
from norton_det.models.structure import Structure, template


def build_network(structure: Structure, plan: PlanLike | None = None, width: float = 1.0) -> Any:
    """Build a network with random weights and trainable BatchNorm, compressed by a plan where there is one.

    `width` multiplies the channels of the body. A detector has `.categories` and `.category_ids`. Raises ValueError
    for a plan or a width that does not fit.
    """
    network: Any = scale_body(template(structure), width)
    if plan is not None:
        apply_structure(network, plan)
    initialise(network)
    if structure.kind is not None:
        network.categories, network.category_ids = categories_of(network)
    return network


def build_around(network: nn.Module, structure: Structure, plan: PlanLike | None = None) -> Any:
    """Build a detector around the body of a ResNet classifier, with whatever was pruned or decomposed in it.

    What follows the body gets random weights, and is factorised as the parts of the plan say. Raises ValueError for
    a plan that does not fit.
    """
    structure = replace(structure, body=structure_of(network).body)
    detector: Any = template(structure)
    parts = load_plan(plan, read_body(detector)).parts if plan is not None else {}
    body = detector.backbone.body
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")}
    set_geometry(body, read_geometry(network, body))
    fit(body, state)
    found = read_body(detector)
    for group in found.groups.values():
        outside = [reader for reader in group.readers if not reader.startswith(found.prefix)]
        slice_channels(detector, [], outside, torch.arange(group.width, device="meta"))
    for part, rank in parts.items():
        for name in part_layers(detector, part):
            detector.set_submodule(name, factorise_empty(detector.get_submodule(name), rank))
    initialise(detector)
    body.load_state_dict(state)
    detector.categories, detector.category_ids = categories_of(detector)
    return with_origin(detector, replace(origin_of(network), dense_weights=None))


def uncompressed(model: nn.Module) -> Any:
    """Build the dense network that a compressed one was made of, with random weights, in evaluation mode.

    Settings and categories are the compressed network's. Raises ValueError where it does not tell how wide the dense
    one was, as in files from elsewhere.
    """
    widths = origin_of(model).widths
    network: Any = copy.deepcopy(model).to("meta")
    _put_back(network, dropped_blocks(model))
    for name, layer in list(network.named_modules()):
        if isinstance(layer, Factorised):
            network.set_submodule(name, _dense(layer))
    for name, group in read_body(network).groups.items():
        if name not in widths:
            raise ValueError(f"it is not known how wide the dense network was: nothing tells the channels of {name}")
        if not group.fixed:
            every = torch.arange(widths[name], device="meta")  # slicing on the meta device widens too
            slice_channels(network, group.producers, group.readers, every)
    return with_origin(initialise(network), Origin()).eval()


def _put_back(network: nn.Module, dropped: Sequence[str]) -> None:
    """Put ordinary blocks back where blocks were left out, in place."""
    if not dropped:
        return
    body, structure = read_body(network), structure_of(network)
    counts = [
        count + sum(name.startswith(f"{stage}.") for name in dropped)
        for stage, count in zip(body.stages, body.blocks_of_stages, strict=True)
    ]
    ordinary = template(replace(structure, body=replace(structure.body, blocks=tuple(counts))))
    for stage in body.stages:
        name = body.prefix + stage
        own = iter(list(network.get_submodule(name).children()))
        whole = enumerate(ordinary.get_submodule(name).children())
        blocks = [block if f"{stage}.{place}" in dropped else next(own, block) for place, block in whole]
        network.set_submodule(name, nn.Sequential(*blocks))


def _dense(layer: Factorised) -> nn.Module:
    if isinstance(layer, CPConv2d):
        return layer.to_conv()
    return nn.Linear(layer.down.in_features, layer.up.out_features, device="meta")
