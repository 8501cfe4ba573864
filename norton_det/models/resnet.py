"""ResNet-50 with any channel widths and any of its 3x3 convolutions held as CP factors.

The vocabulary here is shared with compression plans: a *layer* is the name of a convolution, a *group* is the
name of a set of channels that must keep the same width because a residual sum or a convolution ties them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, resnet50

from norton_det.layers.cp_conv import CPConv2d

BLOCKS = (3, 4, 6, 3)
STAGES = ("layer1", "layer2", "layer3", "layer4")
BLOCK_NAMES = tuple(f"{stage}.{i}" for stage, count in zip(STAGES, BLOCKS, strict=True) for i in range(count))
LAST_BLOCKS = tuple(f"{stage}.{count - 1}" for stage, count in zip(STAGES, BLOCKS, strict=True))
"""The last bottleneck of each stage: its outputs are the stage's."""
SPATIAL_LAYERS = tuple(f"{block}.conv2" for block in BLOCK_NAMES)
"""The sixteen 3x3 convolutions of the bottlenecks: the layers that a plan may decompose."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are chosen once, jointly: every producer and consumer follows.

    `producers` are pairs (convolution, BatchNorm) whose outputs are these channels; `consumers` are the
    convolutions or linear layers that read them. All names are relative to the ResNet.
    """

    name: str
    producers: tuple[tuple[str, str], ...]
    consumers: tuple[str, ...]


def channel_groups() -> tuple[ChannelGroup, ...]:
    """All groups of tied channels of a ResNet-50: the stem, four stage outputs, two inner widths a block."""
    groups = [ChannelGroup("stem", (("conv1", "bn1"),), ("layer1.0.conv1", "layer1.0.downsample.0"))]
    for index, (stage, count) in enumerate(zip(STAGES, BLOCKS, strict=True)):
        blocks = [f"{stage}.{i}" for i in range(count)]
        last_convs = [(f"{block}.conv3", f"{block}.bn3") for block in blocks]
        shortcut = (f"{stage}.0.downsample.0", f"{stage}.0.downsample.1")
        if stage == STAGES[-1]:
            readers = ["fc"]
        else:
            readers = [f"{STAGES[index + 1]}.0.conv1", f"{STAGES[index + 1]}.0.downsample.0"]
        inside = [f"{block}.conv1" for block in blocks[1:]]
        groups.append(ChannelGroup(stage, (*last_convs, shortcut), (*inside, *readers)))
        for block in blocks:
            conv1, conv2, conv3 = (f"{block}.conv{i}" for i in (1, 2, 3))
            groups.append(ChannelGroup(conv1, ((conv1, f"{block}.bn1"),), (conv2,)))
            groups.append(ChannelGroup(conv2, ((conv2, f"{block}.bn2"),), (conv3,)))
    return tuple(groups)


GROUPS = {group.name: group for group in channel_groups()}
_PRODUCED_GROUP = {conv: group.name for group in GROUPS.values() for conv, _ in group.producers}
_CONSUMED_GROUP = {layer: group.name for group in GROUPS.values() for layer in group.consumers}
_BATCH_NORMS = {conv: norm for group in GROUPS.values() for conv, norm in group.producers}


@dataclass(frozen=True)
class ResNetSpec:
    """The structure of a ResNet-50: `widths`, channels by group name; `ranks`, CP rank by layer name.

    A layer that `ranks` does not name is dense.
    """

    widths: Mapping[str, int]
    ranks: Mapping[str, int]

    @classmethod
    def dense(cls, width: float = 1.0) -> "ResNetSpec":
        """The ordinary ResNet-50, every width multiplied by `width` (at least one channel).

        Examples:
            >>> ResNetSpec.dense(0.25).stage_widths
            [64, 128, 256, 512]
        """
        widths = {"stem": 64}
        for index, (stage, count) in enumerate(zip(STAGES, BLOCKS, strict=True)):
            widths[stage] = 256 * 2**index
            for i in range(count):
                widths[f"{stage}.{i}.conv1"] = widths[f"{stage}.{i}.conv2"] = 64 * 2**index
        return cls({group: max(1, int(channels * width)) for group, channels in widths.items()}, {})

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "ResNetSpec":
        """Read the structure from tensor shapes (keys of this module's networks, no prefix).

        Raises ValueError naming a tensor that is missing.
        """
        widths, ranks = {}, {}
        for group in GROUPS.values():
            conv, norm = group.producers[0]
            if f"{norm}.weight" not in state:
                raise ValueError(f"not a ResNet-50: {norm}.weight is missing")
            widths[group.name] = len(state[f"{norm}.weight"])
            if f"{conv}.channel" in state:
                ranks[conv] = state[f"{conv}.channel"].shape[0]
        return cls(widths, ranks)

    @property
    def stage_widths(self) -> list[int]:
        """Output channels of the four stages."""
        return [self.widths[stage] for stage in STAGES]


def build_resnet50(spec: ResNetSpec, num_classes: int = 1000, eps: float = 1e-5) -> ResNet:
    """A torchvision ResNet, its module names kept, with the widths and ranks of `spec`; random weights.

    `eps` is BatchNorm's. Convolutions start as torchvision's do (He et al. 2015, fan-out), CP factors with the
    same variance.
    """
    with torch.device("meta"):
        network = resnet50(num_classes=num_classes)
    for name, norm_name in _BATCH_NORMS.items():
        template = network.get_submodule(name)
        assert isinstance(template, nn.Conv2d)
        inputs = spec.widths[_CONSUMED_GROUP[name]] if name in _CONSUMED_GROUP else 3
        outputs = spec.widths[_PRODUCED_GROUP[name]]
        network.set_submodule(name, _convolution(template, inputs, outputs, spec.ranks.get(name)))
        network.set_submodule(norm_name, nn.BatchNorm2d(outputs, eps=eps))
    network.fc = nn.Linear(spec.widths[STAGES[-1]], num_classes)
    return network


def _convolution(template: nn.Conv2d, inputs: int, outputs: int, rank: int | None) -> nn.Module:
    """What stands at the template's place: its kernel, stride and padding, other channels."""
    geometry: dict[str, Any] = {
        "kernel_size": template.kernel_size,
        "stride": template.stride,
        "padding": template.padding,
        "bias": False,
    }
    if rank is not None:
        return CPConv2d(inputs, outputs, rank=rank, **geometry)
    conv = nn.Conv2d(inputs, outputs, **geometry)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
