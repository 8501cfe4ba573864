"""Describes the parts of a detector behind its body: which layers can be factorised, and what pools and reads
regions."""

from typing import Any, NamedTuple

from torch import nn

from norton_det.layers.cp_conv import CPConv2d
from norton_det.layers.low_rank_linear import LowRankLinear

PARTS = {
    "neck": ("backbone.fpn.layer_blocks", "backbone.fpn.extra_blocks"),
    "rpn": ("rpn.head.conv",),
    "box_convs": ("roi_heads.box_head",),
    "box_head": ("roi_heads.box_head",),
    "mask_head": ("roi_heads.mask_head",),
    "keypoint_head": ("roi_heads.keypoint_head",),
    "classification_head": ("head.classification_head.conv",),
    "regression_head": ("head.regression_head.conv",),
}
"""Where the layers of each part stand that a plan may factorise: 3x3 convolutions, in `box_head` linear layers. A
detector has the parts of its own heads; v2's box head has convolutions, `box_convs`, before its linear layer."""
LINEAR_PART = "box_head"
REGION_KINDS = ("box", "mask", "keypoint")


class Region(NamedTuple):
    """Holds what an R-CNN does with regions of one kind: pool them, look at them, and predict."""

    pooler: Any
    head: Any
    predictor: Any


def part_layers(model: nn.Module, part: str) -> list[str]:
    """Return the names of a part's layers in a model, dense or factorised; an empty list where it lacks the part."""
    kinds = (nn.Linear, LowRankLinear) if part == LINEAR_PART else (nn.Conv2d, CPConv2d)
    names: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{place}.") for place in PARTS[part])
        if inside and isinstance(module, kinds) and not _is_within(name, names):
            names.append(name)
    return names


def _is_within(name: str, names: list[str]) -> bool:
    """Tell whether a layer is one of the two in a LowRankLinear, which are no layers of the part themselves."""
    return any(name.startswith(f"{other}.") for other in names)


def regions(detector: nn.Module) -> dict[str, Region]:
    """Return pooler, head and predictor by kind of region (REGION_KINDS); empty for a one-stage detector."""
    heads: Any = getattr(detector, "roi_heads", None)
    if heads is None:
        return {}
    found = {
        kind: Region(*(getattr(heads, f"{kind}_{part}", None) for part in ("roi_pool", "head", "predictor")))
        for kind in REGION_KINDS
    }
    return {kind: region for kind, region in found.items() if region.head is not None}


def dense_head(detector: nn.Module) -> nn.Module:
    """Return the head that looks at every place of the pyramid: the RPN's, or the only head of a one-stage
    detector."""
    model: Any = detector
    head: nn.Module = model.rpn.head if hasattr(model, "rpn") else model.head
    return head


def networks(detector: nn.Module) -> list[nn.Module]:
    """Return the modules of a detector that hold its convolutions and linear layers."""
    model: Any = detector
    of_regions = [module for region in regions(detector).values() for module in (region.head, region.predictor)]
    return [model.backbone, dense_head(detector), *of_regions]
