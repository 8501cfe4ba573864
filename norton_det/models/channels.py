"""Reads off a trace of the network which channels must be chosen together.

The vocabulary here is shared with compression plans: a *layer* is the name of a convolution, a *group* the name of a
set of channels that must keep the same width because a sum adds them or a grouped convolution pairs them. Names are
relative to the ResNet, as torchvision has them.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.layers.cp_conv import CPConv2d
from norton_det.layers.low_rank_linear import LowRankLinear

DETECTOR_BODY = "backbone.body."
STEM = "stem"
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
_LAYERS = (nn.Conv2d, CPConv2d, nn.Linear, LowRankLinear)
_SUMS: tuple[Callable[..., Any], ...] = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class ChannelGroup:
    """A group of channels that are chosen jointly: every producer and reader follows the one choice.

    Attributes:
        name: `stem`, a stage (`layer1`) for the channels that its blocks' sums tie, else the one convolution.
        producers: pairs (convolution, BatchNorm) whose outputs are these channels, by their names in the model.
        readers: the layers that read them, by their names in the model.
        width: the number of channels.
        fixed: whether a grouped convolution pairs the channels with its filters, so that none can be dropped.
    """

    name: str
    producers: tuple[tuple[str, str], ...]
    readers: tuple[str, ...]
    width: int
    fixed: bool


@dataclass(frozen=True)
class Block:
    """Describes a residual block: BasicBlock or Bottleneck.

    Attributes:
        name: `layer1.0`.
        stage: `layer1`.
        convs: its convolutions in the order of the data, without the shortcut's; the last one feeds the sum.
        spatial: the convolutions that a plan may decompose: with a kernel of more than one pixel, and not grouped.
        inner: the groups between the convolutions, which share one width in the paper's plans.
    """

    name: str
    stage: str
    convs: tuple[str, ...]
    spatial: tuple[str, ...]
    inner: tuple[str, ...]

    @property
    def is_first(self) -> bool:
        """Tell whether the block begins its stage: it alone may change channels and size."""
        return self.name == f"{self.stage}.0"


@dataclass(frozen=True)
class Body:
    """Describes what a plan can speak of in a ResNet, alone or as a detector's body.

    Attributes:
        prefix: the ResNet's place in the model: "" or "backbone.body.".
        blocks: in the order of the data.
        groups: by name.
    """

    prefix: str
    blocks: tuple[Block, ...]
    groups: Mapping[str, ChannelGroup]

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the names of the stages, `layer1` to `layer4` in a whole ResNet."""
        return tuple(dict.fromkeys(block.stage for block in self.blocks))

    @property
    def spatial(self) -> tuple[str, ...]:
        """Return the convolutions that a plan may decompose, in the order of the data."""
        return tuple(layer for block in self.blocks for layer in block.spatial)

    @property
    def depth(self) -> int:
        """Return the number in a ResNet's name: its convolutions without the shortcuts', and the linear layer."""
        return 2 + sum(len(block.convs) for block in self.blocks)

    @property
    def blocks_of_stages(self) -> tuple[int, ...]:
        """Return how many blocks each stage has."""
        return tuple(sum(block.stage == stage for block in self.blocks) for stage in self.stages)

    def last_block(self, stage: str) -> Block:
        """Return the block whose output is the stage's."""
        return [block for block in self.blocks if block.stage == stage][-1]

    def group_of(self, conv: str) -> ChannelGroup:
        """Return the group that a convolution, named relative to the ResNet, produces."""
        name = self.prefix + conv
        return next(g for g in self.groups.values() if name in (producer for producer, _ in g.producers))


def read_body(model: nn.Module) -> Body:
    """Read blocks and tied channels from a ResNet, or from a detector with one under a feature pyramid.

    Raises ValueError for a model that has no ResNet.
    """
    prefix = DETECTOR_BODY if hasattr(model, "backbone") else ""
    modules = dict(model.named_modules())
    if f"{prefix}layer1.0.conv1" not in modules:
        raise ValueError(f"no ResNet in a {type(model).__name__}: it has no {prefix}layer1.0.conv1")
    blocks = tuple(_read_blocks(modules, prefix))
    last = {f"{prefix}{block.convs[-1]}": block.stage for block in blocks}
    groups = [
        _named(found, prefix, last, modules)
        for found in _tied(model, "backbone." if prefix else "")
        if all(norm and conv.startswith(prefix) for conv, norm in found.producers)
    ]
    return Body(prefix, blocks, {group.name: group for group in groups})


def _read_blocks(modules: Mapping[str, nn.Module], prefix: str) -> Iterable[Block]:
    names = [name.removeprefix(prefix) for name in modules if name.startswith(f"{prefix}layer")]
    for name in (name for name in names if name.count(".") == 1):
        convs = tuple(f"{name}.conv{i}" for i in (1, 2, 3) if f"{prefix}{name}.conv{i}" in modules)
        layers: dict[str, Any] = {conv: modules[prefix + conv] for conv in convs}
        grouped = {conv for conv, layer in layers.items() if getattr(layer, "groups", 1) > 1}
        spatial = tuple(c for c in convs if max(layers[c].kernel_size) > 1 and c not in grouped)
        yield Block(name, name.split(".")[0], convs, spatial, convs[:-1])


@dataclass
class _Space:
    """Holds the channels of a map while the trace is followed; spaces that a sum joins become one."""

    producers: list[tuple[str, str]] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    fixed: bool = False


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*_LAYERS, *NORMS)) or super().is_leaf_module(m, module_qualified_name)


def _tied(model: nn.Module, prefix: str) -> list[_Space]:
    """Follow the channels through a module of the model, given by its prefix."""
    root = model.get_submodule(prefix.removesuffix("."))
    modules = dict(root.named_modules())
    space: dict[fx.Node, _Space] = {}

    def join(first: _Space, second: _Space) -> None:
        if first is second:
            return
        first.producers += second.producers
        first.readers += second.readers
        first.fixed |= second.fixed
        space.update({node: first for node, found in space.items() if found is second})

    for node in _Tracer().trace(root).nodes:
        read = [other for other in node.all_input_nodes if other in space]
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        name = f"{prefix}{node.target}"
        if isinstance(layer, _LAYERS):
            grouped = getattr(layer, "groups", 1) > 1
            for other in read:
                space[other].readers.append(name)
                space[other].fixed |= grouped
            space[node] = _Space([(name, "")], fixed=grouped)
        elif isinstance(layer, NORMS):
            space[node] = space[read[0]]
            (conv, _), *others = reversed(space[node].producers)
            space[node].producers = [*reversed(others), (conv, name)]
        elif read and node.op.startswith("call") and node.target is not getattr:
            space[node] = space[read[0]]
            if node.target in _SUMS:
                for other in read[1:]:
                    join(space[node], space[other])
    return list({id(found): found for found in space.values()}.values())


def _named(found: _Space, prefix: str, last: Mapping[str, str], modules: Mapping[str, nn.Module]) -> ChannelGroup:
    convs = [conv for conv, _ in found.producers]
    stages = [last[conv] for conv in convs if conv in last]
    alone = convs[0].removeprefix(prefix)
    name = stages[0] if stages else STEM if alone == "conv1" else alone
    width = len(modules[found.producers[0][1]].weight)  # type: ignore[arg-type]
    return ChannelGroup(name, tuple(found.producers), tuple(dict.fromkeys(found.readers)), width, found.fixed)
