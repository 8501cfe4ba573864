"""Reads the structure of a network from the names of its tensors: whose they are, and which modules they need."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from norton_det.models.channels import DETECTOR_BODY
from norton_det.models.structure import CLASSES, STAGES, SUPPORTED, BodyKind, Extra, Kind, Structure

State = Mapping[str, Tensor]


def read_structure(state: State, told: Mapping[str, Any]) -> Structure:
    """Read the structure from the names of tensors, and from `told` where those leave it open.

    `told` may have `returned_layers`, `extra_levels` and `tower_groups`, as `untold` gives them. Raises ValueError
    that says what the tensors are, where they are none of SUPPORTED.
    """
    kind = _read_kind(state)
    prefix = DETECTOR_BODY if kind else ""
    body = _read_body(state, prefix)
    if kind is None:
        return Structure(None, body, outputs_of(state, "fc") if has_layer(state, "fc") else 1000)
    laterals = _count(state, "backbone.fpn.inner_blocks.{}.0")
    if not laterals:
        raise ValueError(f"a detector without a feature pyramid is not supported; supported are {SUPPORTED}")
    structure = Structure(
        kind=kind,
        body=body,
        classes=0,
        returned=_checked_stages(told.get("returned_layers") or _read_returned(state, body, laterals)),
        extra=told.get("extra_levels", _read_extra(state, kind)),
        channels=outputs_of(state, "backbone.fpn.inner_blocks.0.0"),
        neck_norm="backbone.fpn.inner_blocks.0.1.weight" in state,
    )
    if kind in ("retinanet", "fcos"):
        anchors = outputs_of(state, "head.regression_head.bbox_reg") // 4
        return replace(
            structure,
            anchors=anchors,
            classes=outputs_of(state, "head.classification_head.cls_logits") // max(1, anchors),
            tower_norm="head.classification_head.conv.0.1.weight" in state,
            tower_groups=told.get("tower_groups", 32),
            tower_convs=_count(state, "head.classification_head.conv.{}", step=3),
        )
    heads = "roi_heads."
    return replace(
        structure,
        classes=outputs_of(state, f"{heads}box_predictor.cls_score"),
        anchors=outputs_of(state, "rpn.head.cls_logits"),
        rpn_convs=_count(state, "rpn.head.conv.{}.0"),
        box_convs=_count(state, f"{heads}box_head.{{}}.0"),
        mask_convs=_count(state, f"{heads}mask_head.{{}}.0"),
        mask_norm=f"{heads}mask_head.0.1.weight" in state,
        keypoint_convs=_count(state, f"{heads}keypoint_head.{{}}", step=2),
        keypoints=_inputs_of_transposed(state, f"{heads}keypoint_predictor.kps_score_lowres"),
    )


def structure_of(model: nn.Module) -> Structure:
    """Read the structure of a network in memory. Raises ValueError that says what it is where it is not supported."""
    if type(model) not in CLASSES:
        raise ValueError(f"a {type(model).__name__} is not supported; supported are {SUPPORTED}")
    if not isinstance(model, ResNet) and not hasattr(model.backbone, "fpn"):
        raise ValueError(f"a detector without a feature pyramid is not supported; supported are {SUPPORTED}")
    return read_structure(model.state_dict(), {} if isinstance(model, ResNet) else _told_by(model))


def untold(structure: Structure) -> dict[str, Any]:
    """Return what `read_structure` must be told beside a detector's tensors, in plain types."""
    return {
        "returned_layers": list(structure.returned),
        "extra_levels": structure.extra,
        "tower_groups": structure.tower_groups,
    }


def _told_by(detector: nn.Module) -> dict[str, Any]:
    model: Any = detector
    extra = model.backbone.fpn.extra_blocks
    levels: dict[type, Extra | None] = {type(None): None, LastLevelMaxPool: "pool"}
    told: Extra | None
    if isinstance(extra, LastLevelP6P7):
        told = "p6p7" if extra.use_P5 else "c5p6p7"
    elif type(extra) in levels:
        told = levels[type(extra)]
    else:
        raise ValueError(f"the levels that a {type(extra).__name__} adds to the pyramid are not supported")
    returned = model.backbone.body.return_layers
    if not all(stage.startswith("layer") for stage in returned):
        raise ValueError(f"{_guess(detector.state_dict())}; supported are {SUPPORTED}")
    if list(returned.values()) != [str(level) for level in range(len(returned))]:
        raise ValueError(f"the pyramid's levels are named {', '.join(returned.values())}, expected 0, 1 and so on")
    stages = _checked_stages([int(stage.removeprefix("layer")) for stage in returned])
    groups = [module.num_groups for module in detector.modules() if isinstance(module, nn.GroupNorm)]
    return {"returned_layers": list(stages), "extra_levels": told} | ({"tower_groups": groups[0]} if groups else {})


def _checked_stages(returned: Any) -> tuple[int, ...]:
    if not set(returned) <= set(range(1, STAGES + 1)) or list(returned) != sorted(set(returned)):
        raise ValueError(f"returned_layers: expected stages from 1 to {STAGES} in ascending order, got {returned!r}")
    return tuple(returned)


def _read_kind(state: State) -> Kind | None:
    if has_layer(state, "roi_heads.box_predictor.cls_score"):
        has_mask, has_keypoints = (
            any(name.startswith(f"roi_heads.{head}.") for name in state) for head in ("mask_head", "keypoint_head")
        )
        if has_mask and has_keypoints:
            raise ValueError(f"a detector with both masks and keypoints is not supported; supported are {SUPPORTED}")
        return "mask_rcnn" if has_mask else "keypoint_rcnn" if has_keypoints else "faster_rcnn"
    if has_layer(state, "head.regression_head.bbox_ctrness"):
        return "fcos"
    if has_layer(state, "head.regression_head.bbox_reg"):
        return "retinanet"
    if any(name.startswith("layer1.0.conv") for name in state) and not any("backbone" in name for name in state):
        return None
    raise ValueError(f"{_guess(state)}; supported are {SUPPORTED}")


_STRANGERS = {
    "head.classification_head.module_list": "an SSD",
    "transformer.": "a DETR",
    "query_embed": "a DETR",
    "backbone.body.0.0.weight": "a detector on a MobileNet",
    "backbone.features": "a detector on another body than a ResNet",
    "features.0.0.weight": "a MobileNet or a network like it",
    "model.0.conv": "a YOLO",
    "backbone.0.body": "a DETR",
    "_packed_params": "a quantised model",
    ".scale": "a quantised model",
    "rpn.head": "a detector without a box predictor",
    "backbone.body": "a detector of an unknown kind",
}
"""What a tensor likely belongs to, by a fragment of its name."""


def _guess(state: State) -> str:
    for fragment, what in _STRANGERS.items():
        if any(fragment in name for name in state):
            return f"the weights are those of {what}"
    return f"the weights are of an unknown network, with tensors such as {', '.join(list(state)[:3])}"


def _read_body(state: State, prefix: str) -> BodyKind:
    counts = [_count(state, f"{prefix}layer{stage}.{{}}.bn1") for stage in range(1, STAGES + 1)]
    stages = counts.index(0) if 0 in counts else STAGES
    if not stages or not has_layer(state, f"{prefix}conv1"):
        missing = f"{prefix}conv1.weight" if stages else f"{prefix}layer1.0.conv1.weight"
        raise ValueError(f"{_guess(state)}; not a ResNet: {missing} is missing; supported are {SUPPORTED}")
    bottleneck = has_layer(state, f"{prefix}layer1.0.conv3")
    return BodyKind("bottleneck" if bottleneck else "basic", tuple(counts[:stages]))


def _read_returned(state: State, body: BodyKind, laterals: int) -> tuple[int, ...]:
    """Return the stages whose outputs are as wide as what the laterals read; where several fit, the last ones."""
    last = 3 if body.block == "bottleneck" else 2
    stages = range(1, len(body.blocks) + 1)
    widths = {stage: outputs_of(state, f"{DETECTOR_BODY}layer{stage}.0.conv{last}") for stage in stages}
    found: list[int] = []
    for level in reversed(range(laterals)):
        wanted = inputs_of(state, f"backbone.fpn.inner_blocks.{level}.0")
        below = [stage for stage in stages if stage < (found[0] if found else len(stages) + 1)]
        fitting = [stage for stage in below if widths[stage] == wanted]
        if not fitting:
            raise ValueError(f"backbone.fpn.inner_blocks.{level}.0 reads {wanted} channels, which no stage gives")
        found.insert(0, max(fitting))
    return tuple(found)


def _read_extra(state: State, kind: Kind) -> Extra | None:
    if not has_layer(state, "backbone.fpn.extra_blocks.p6"):
        return None if kind in ("retinanet", "fcos") else "pool"
    reads_p5 = inputs_of(state, "backbone.fpn.extra_blocks.p6") == outputs_of(state, "backbone.fpn.inner_blocks.0.0")
    return "p6p7" if reads_p5 else "c5p6p7"


def has_layer(state: State, layer: str) -> bool:
    """Tell whether there are tensors of a layer, dense or factorised."""
    return any(f"{layer}.{name}" in state for name in ("weight", "bias", "channel", "up.weight"))


def _count(state: State, names: str, step: int = 1) -> int:
    """Count the layers whose names have the numbers 0, 1, 2 and so on, times `step`, without a gap."""
    count = 0
    while has_layer(state, names.format(count * step)):
        count += 1
    return count


def outputs_of(state: State, layer: str) -> int:
    """Return how many channels or features a layer gives. Raises ValueError for a layer that is not there."""
    return _dimension(state, layer, {"weight": 0, "channel": 1, "up.weight": 0, "bias": 0})


def inputs_of(state: State, layer: str) -> int:
    """Return how many channels or features a layer reads (grouped: in each group). Raises ValueError likewise."""
    return _dimension(state, layer, {"weight": 1, "channel": 2, "down.weight": 1})


def _inputs_of_transposed(state: State, layer: str) -> int:
    """Return how many channels a transposed convolution gives, its weight's second dimension; 17 without it."""
    return state[f"{layer}.weight"].shape[1] if f"{layer}.weight" in state else 17


def _dimension(state: State, layer: str, places: Mapping[str, int]) -> int:
    for name, place in places.items():
        tensor = state.get(f"{layer}.{name}")
        if tensor is not None:
            if tensor.ndim <= place:
                raise ValueError(f"{layer}.{name} has the shape {tuple(tensor.shape)}")
            return tensor.shape[place]
    raise ValueError(f"weights are incomplete, missing {layer}.{next(iter(places))}")
