"""Describes the structure of a network: which of torchvision's modules stand in it, whatever their widths.

A template is torchvision's own network of a structure, on the meta device and without numbers.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from norton_det.models.variants import LateClippingRetinaNet

Kind = Literal["faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet", "fcos"]
Extra = Literal["pool", "p6p7", "c5p6p7"]
CLASSES = (ResNet, GeneralizedRCNN, FasterRCNN, MaskRCNN, KeypointRCNN, RetinaNet, LateClippingRetinaNet, FCOS)
"""The supported classes of torchvision's networks; what a subclass of them computes is not known."""
SUPPORTED = (
    "Faster, Mask and Keypoint R-CNN, RetinaNet and FCOS with a feature pyramid on a ResNet, and ResNet classifiers,"
    " as torchvision or Detectron2 builds them"
)
STAGES = 4
_LEVELS: dict[Extra | None, int] = {None: 0, "pool": 1, "p6p7": 2, "c5p6p7": 2}


@dataclass(frozen=True)
class BodyKind:
    """Describes a ResNet: its blocks, how many in each stage; groups of the 3x3 convolutions and their width."""

    block: Literal["basic", "bottleneck"]
    blocks: tuple[int, ...]
    groups: int = 1
    width_per_group: int = 64


BODIES = {
    "resnet18": BodyKind("basic", (2, 2, 2, 2)),
    "resnet34": BodyKind("basic", (3, 4, 6, 3)),
    "resnet50": BodyKind("bottleneck", (3, 4, 6, 3)),
    "resnet101": BodyKind("bottleneck", (3, 4, 23, 3)),
    "resnet152": BodyKind("bottleneck", (3, 8, 36, 3)),
    "wide_resnet50_2": BodyKind("bottleneck", (3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": BodyKind("bottleneck", (3, 4, 23, 3), width_per_group=128),
    "resnext50_32x4d": BodyKind("bottleneck", (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": BodyKind("bottleneck", (3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": BodyKind("bottleneck", (3, 4, 23, 3), groups=64, width_per_group=4),
}
"""torchvision's ResNets by name."""


@dataclass(frozen=True)
class Structure:
    """Tells which of torchvision's modules stand in a network.

    Attributes:
        kind: the detector's; None: a classifier.
        body: the ResNet.
        classes: how many; a detector's with the background.
        returned: the stages that the pyramid reads, 1 to 4.
        extra: what makes the further levels: `pool` halves the last, `p6p7` are convolutions on P5, `c5p6p7` on C5.
        channels: the pyramid's.
        neck_norm: whether BatchNorm stands behind the pyramid's convolutions.
        anchors: boxes at a place.
        rpn_convs: 3x3 convolutions of the RPN's head.
        box: features of the box head.
        box_convs: its convolutions with BatchNorm, none in v1.
        mask, mask_convs, mask_norm: the mask head's width, convolutions and BatchNorm.
        keypoint, keypoint_convs, keypoints: the keypoint head's width and convolutions, and how many points it finds.
        tower_norm: whether RetinaNet's towers have GroupNorm, which makes it v2.
        tower_groups: the groups of GroupNorm in towers.
        tower_convs: the convolutions in each of FCOS's towers.
    """

    kind: Kind | None
    body: BodyKind
    classes: int
    returned: tuple[int, ...] = (1, 2, 3, 4)
    extra: Extra | None = "pool"
    channels: int = 256
    neck_norm: bool = False
    anchors: int = 3
    rpn_convs: int = 1
    box: int = 1024
    box_convs: int = 0
    mask: int = 256
    mask_convs: int = 4
    mask_norm: bool = False
    keypoint: int = 512
    keypoint_convs: int = 8
    keypoints: int = 17
    tower_norm: bool = False
    tower_groups: int = 32
    tower_convs: int = 4


_ONE_STAGE: dict[str, Any] = {"returned": (2, 3, 4), "extra": "p6p7"}
_V2: dict[str, Any] = {"neck_norm": True, "rpn_convs": 2, "box_convs": 4}
KINDS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"kind": "faster_rcnn"},
    "mask_rcnn": {"kind": "mask_rcnn"},
    "keypoint_rcnn": {"kind": "keypoint_rcnn"},
    "faster_rcnn_v2": {"kind": "faster_rcnn", **_V2},
    "mask_rcnn_v2": {"kind": "mask_rcnn", "mask_norm": True, **_V2},
    "retinanet": {"kind": "retinanet", "anchors": 9, **_ONE_STAGE},
    "retinanet_v2": {"kind": "retinanet", "anchors": 9, "tower_norm": True, **_ONE_STAGE, "extra": "c5p6p7"},
    "fcos": {"kind": "fcos", "anchors": 1, **_ONE_STAGE},
}
"""torchvision's detectors by name: the fields of their Structure that differ from its defaults."""


def named_structure(detector: str | None, body: str, classes: int, **sizes: int) -> Structure:
    """Return the structure of one of KINDS (None: a classifier) on one of BODIES, with other sizes where wanted.

    Raises ValueError for a name that is neither.
    """
    if detector is not None and detector not in KINDS:
        raise ValueError(f"detector {detector!r} is not one of {', '.join(KINDS)}")
    if body not in BODIES:
        raise ValueError(f"body {body!r} is not one of {', '.join(BODIES)}")
    fields = {"kind": None} if detector is None else KINDS[detector]
    structure = Structure(**{"body": BODIES[body], "classes": classes, **fields, **sizes})
    return replace(structure, tower_groups=_groups(structure.channels))


def _groups(channels: int) -> int:
    """Return the groups of GroupNorm in towers: 32 as in torchvision, or fewer for at least 8 channels each."""
    groups = 32
    while groups > 1 and (channels % groups or channels < 8 * groups):
        groups //= 2
    return groups


def template(structure: Structure) -> nn.Module:
    """Build torchvision's network of a structure on the meta device, with BatchNorm wherever there is a norm."""
    return copy.deepcopy(_built(structure))


@lru_cache(maxsize=32)
def _built(structure: Structure) -> nn.Module:
    with torch.device("meta"), _NothingDrawn():
        body = _body(structure.body, structure.classes if structure.kind is None else 1)
    if structure.kind is None:
        network: nn.Module = body
        return network
    levels = len(structure.returned) + _LEVELS[structure.extra]
    anchors = default_anchors(structure, levels)  # its tensors are no parameters, so not on meta
    with torch.device("meta"), _NothingDrawn():
        backbone = _with_pyramid(body, structure)
        return _BUILDERS[structure.kind](structure, backbone, anchors)


class _NothingDrawn(TorchFunctionMode):
    """Leaves tensors without random numbers inside a `with` block: drawing takes time on the meta device too."""

    _DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in self._DRAWS else func(*args, **(kwargs or {}))


def default_anchors(structure: Structure, levels: int) -> AnchorGenerator:
    """Return torchvision's anchors for a kind of detector on so many levels, each twice as large as the one before.

    RetinaNet has three sizes an octave, FCOS the strides as sizes, and R-CNNs one size a level.
    """
    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    if structure.kind == "fcos":
        first, sizes, ratios = 8, (1.0,), (1.0,)
    elif structure.kind == "retinanet":
        first, sizes, ratios = 32, (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1.0, 2.0)
    else:
        first, sizes, ratios = 32, (1.0,), (0.5, 1.0, 2.0)
    of_levels = tuple(tuple(int(first * 2**level * size) for size in sizes) for level in range(levels))
    return AnchorGenerator(of_levels, (ratios,) * levels)


def _body(kind: BodyKind, classes: int) -> ResNet:
    block = {"basic": BasicBlock, "bottleneck": Bottleneck}[kind.block]
    layers = [*kind.blocks, *[1] * (STAGES - len(kind.blocks))]
    return ResNet(block, layers, classes, groups=kind.groups, width_per_group=kind.width_per_group)


def _with_pyramid(body: ResNet, structure: Structure) -> BackboneWithFPN:
    expansion = 4 if structure.body.block == "bottleneck" else 1
    widths = [64 * expansion * 2 ** (stage - 1) for stage in structure.returned]
    channels = structure.channels
    extra = {
        None: None,
        "pool": LastLevelMaxPool(),
        "p6p7": LastLevelP6P7(channels, channels),
        "c5p6p7": LastLevelP6P7(widths[-1], channels),
    }[structure.extra]
    returned = {f"layer{stage}": str(level) for level, stage in enumerate(structure.returned)}
    norm = nn.BatchNorm2d if structure.neck_norm else None
    backbone = BackboneWithFPN(body, returned, widths, channels, extra, norm)
    if extra is None:  # where BackboneWithFPN would add a pooled level
        backbone.fpn.extra_blocks = None
    elif structure.extra != "pool":  # which torchvision decides by comparing widths
        backbone.fpn.extra_blocks.use_P5 = structure.extra == "p6p7"
    return backbone


def _rcnn_arguments(s: Structure, anchors: AnchorGenerator) -> dict[str, Any]:
    """Return the arguments that all R-CNNs share: the RPN's head, the box head and its predictor."""
    if s.box_convs:
        shape = (s.channels, 7, 7)
        head: nn.Module = FastRCNNConvFCHead(shape, [s.channels] * s.box_convs, [s.box], norm_layer=nn.BatchNorm2d)
    else:
        head = TwoMLPHead(s.channels * 7 * 7, s.box)
    return {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(s.channels, s.anchors, s.rpn_convs),
        "box_head": head,
        "box_predictor": FastRCNNPredictor(s.box, s.classes),
    }


def _faster_rcnn(s: Structure, backbone: BackboneWithFPN, anchors: AnchorGenerator) -> FasterRCNN:
    return FasterRCNN(backbone, **_rcnn_arguments(s, anchors))


def _mask_rcnn(s: Structure, backbone: BackboneWithFPN, anchors: AnchorGenerator) -> MaskRCNN:
    norm = nn.BatchNorm2d if s.mask_norm else None
    return MaskRCNN(
        backbone,
        mask_head=MaskRCNNHeads(s.channels, [s.mask] * s.mask_convs, dilation=1, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(s.mask, s.mask, s.classes),
        **_rcnn_arguments(s, anchors),
    )


def _keypoint_rcnn(s: Structure, backbone: BackboneWithFPN, anchors: AnchorGenerator) -> KeypointRCNN:
    return KeypointRCNN(
        backbone,
        keypoint_head=KeypointRCNNHeads(s.channels, [s.keypoint] * s.keypoint_convs),
        keypoint_predictor=KeypointRCNNPredictor(s.keypoint, s.keypoints),
        **_rcnn_arguments(s, anchors),
    )


def _retinanet(s: Structure, backbone: BackboneWithFPN, anchors: AnchorGenerator) -> RetinaNet:
    norm = partial(nn.GroupNorm, s.tower_groups) if s.tower_norm else None
    head = RetinaNetHead(s.channels, s.anchors, s.classes, norm_layer=norm)
    head.regression_head._loss_type = "giou" if s.tower_norm else "l1"  # as torchvision's builders have it
    return LateClippingRetinaNet(backbone, s.classes, anchor_generator=anchors, head=head)


def _fcos(s: Structure, backbone: BackboneWithFPN, anchors: AnchorGenerator) -> FCOS:
    norm = partial(nn.GroupNorm, s.tower_groups)
    head = FCOSHead(32, s.anchors, s.classes)  # has 32 groups at any width: both halves are built anew
    sizes = (s.channels, s.anchors)
    head.classification_head = FCOSClassificationHead(*sizes, s.classes, s.tower_convs, norm_layer=norm)
    head.regression_head = FCOSRegressionHead(*sizes, s.tower_convs, norm_layer=norm)
    return FCOS(backbone, s.classes, anchor_generator=anchors, head=head)


_BUILDERS: dict[Kind, Callable[[Structure, BackboneWithFPN, AnchorGenerator], nn.Module]] = {
    "faster_rcnn": _faster_rcnn,
    "mask_rcnn": _mask_rcnn,
    "keypoint_rcnn": _keypoint_rcnn,
    "retinanet": _retinanet,
    "fcos": _fcos,
}
