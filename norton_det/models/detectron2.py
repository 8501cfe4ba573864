"""Turns Detectron2's detectors into torchvision's: tensors get torchvision's names, rows torchvision's order."""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from norton_det.models.channels import DETECTOR_BODY
from norton_det.models.detectron2_config import Detectron2Config, read_config, zoo_config
from norton_det.models.detectron2_settings import (
    Family,
    anchor_counts,
    categories_of,
    check_supported,
    first_level,
    settings_of,
)
from norton_det.models.structure import SUPPORTED

log = logging.getLogger(__name__)
_OURS = re.compile(r"(backbone\.)?res2\.0\.|backbone\.(bottom_up|fpn_lateral\d)\.|proposal_generator\.")
_STRANGERS = {
    r"sem_seg_head\.": "a segmentation of whole scenes (panoptic or semantic)",
    r"roi_heads\.box_(head|predictor)\.0\.": "a Cascade R-CNN",
    r"conv2_offset\.": "a body with deformable convolutions",
    r"roi_heads\.res5\.": "a detector of the kind C4",
    r"[._](coarse|point)_head\.": "PointRend",
    r"ctrness\.": "FCOS",
    r"backbone\.res5\.": "a detector of the kind DC5",
    r"backbone\.(stem|res\d)\.": "a detector without a feature pyramid, or a bare backbone",
}
"""What is not supported, by a pattern in a tensor's name."""
_LAYERS: tuple[tuple[str, str, Callable[[int], Any]], ...] = (
    (r"backbone\.bottom_up\.stem\.conv1", f"{DETECTOR_BODY}conv1", int),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)", DETECTOR_BODY + "layer{}.{}.conv{}", lambda n: n - 1),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut", DETECTOR_BODY + "layer{}.{}.downsample.0", lambda n: n - 1),
    (r"backbone\.top_block\.p(\d)", "backbone.fpn.extra_blocks.p{}", int),
    (r"proposal_generator\.rpn_head\.conv(?:\.conv(\d))?", "rpn.head.conv.{}.0", int),
    (r"proposal_generator\.rpn_head\.objectness_logits", "rpn.head.cls_logits", int),
    (r"proposal_generator\.rpn_head\.anchor_deltas", "rpn.head.bbox_pred", int),
    (r"roi_heads\.box_head\.conv(\d)", "roi_heads.box_head.{}.0", lambda n: n - 1),
    (r"roi_heads\.box_predictor\.cls_score", "roi_heads.box_predictor.cls_score", int),
    (r"roi_heads\.box_predictor\.bbox_pred", "roi_heads.box_predictor.bbox_pred", int),
    (r"roi_heads\.mask_head\.mask_fcn(\d)", "roi_heads.mask_head.{}.0", lambda n: n - 1),
    (r"roi_heads\.mask_head\.deconv", "roi_heads.mask_predictor.conv5_mask", int),
    (r"roi_heads\.mask_head\.predictor", "roi_heads.mask_predictor.mask_fcn_logits", int),
    (r"roi_heads\.keypoint_head\.conv_fcn(\d)", "roi_heads.keypoint_head.{}", lambda n: 2 * n - 2),
    (r"roi_heads\.keypoint_head\.score_lowres", "roi_heads.keypoint_predictor.kps_score_lowres", int),
    (r"head\.cls_subnet\.(\d)", "head.classification_head.conv.{}.0", lambda n: n // 2),
    (r"head\.bbox_subnet\.(\d)", "head.regression_head.conv.{}.0", lambda n: n // 2),
    (r"head\.cls_score", "head.classification_head.cls_logits", int),
    (r"head\.bbox_pred", "head.regression_head.bbox_reg", int),
)
"""Patterns of Detectron2's layers, torchvision's names for them, and what becomes of the first number in a name.
Patterns that depend on the file are added where it is read."""
_LEFT_ASIDE = re.compile(r".*anchor_generator\.cell_anchors\.\d+|pixel_mean|pixel_std")
_ZOO: dict[Family, str] = {
    "faster_rcnn": "Base-RCNN-FPN.yaml",
    "mask_rcnn": "Base-RCNN-FPN.yaml",
    "keypoint_rcnn": "Base-Keypoint-RCNN-FPN.yaml",
    "retinanet": "Base-RetinaNet.yaml",
}
"""The configuration by which the model zoo made a detector, by its family."""
_NEVER = -1000.0
"""The logit of a class that no box gets: its sigmoid is 0."""


def is_detectron2(state: Mapping[str, Any]) -> bool:
    """Tell whether tensors have names that Detectron2 gives."""
    return any(_OURS.match(name) for name in state)


def convert(
    state: Mapping[str, Tensor], config: Path | None, source: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Turn Detectron2's tensors into torchvision's, and its configuration into what our files tell beside the
    tensors.

    Without a configuration the model zoo's is taken, which is logged. Raises ValueError that says what is not
    supported.
    """
    _refuse_strangers(state)
    family = _family(state)
    _refuse_other_bodies(state)
    values = read_config(config) if config else zoo_config(_ZOO[family])
    if config is None and _is_grouped(state):
        raise ValueError("a ResNeXt of Detectron2's needs its configuration: --d2-config")
    if config is None:
        guess = "%s: settings, and COCO's names where it has as many classes, are those of Detectron2's model zoo"
        log.info(f"{guess}: --d2-config tells others", source)
    check_supported(values, family)
    renamed = _renamed(state, first_level(values))
    _reorder(renamed, values, family)
    if values["INPUT.FORMAT"] == "BGR":
        renamed[f"{DETECTOR_BODY}conv1.weight"] = renamed[f"{DETECTOR_BODY}conv1.weight"].flip(1)
    told = {"norm_eps": 1e-5, "geometry": _geometry(renamed, values), **settings_of(values, family)}
    return renamed, {"network": told, **categories_of(values, family, _classes(renamed, values))}


def _family(state: Mapping[str, Tensor]) -> Family:
    if "head.bbox_pred.weight" in state:
        return "retinanet"
    if "roi_heads.box_predictor.cls_score.weight" not in state or not any("proposal_gen" in name for name in state):
        raise _refusal("the weights are those of no RetinaNet and no R-CNN with its own proposals")
    kinds: dict[str, Family] = {"mask_head": "mask_rcnn", "keypoint_head": "keypoint_rcnn"}
    return next((kind for head, kind in kinds.items() if any(head in name for name in state)), "faster_rcnn")


def _refusal(what: str) -> ValueError:
    return ValueError(f"this detector of Detectron2's is not supported: {what}; supported are {SUPPORTED}")


def _refuse_strangers(state: Mapping[str, Tensor]) -> None:
    for pattern, what in _STRANGERS.items():
        if any(re.search(pattern, name) for name in state):
            raise _refusal(f"the weights are those of {what}")
    for name in state:
        if name.endswith("norm.weight") and name.removesuffix("weight") + "running_mean" not in state:
            raise _refusal(f"it has a norm that is GroupNorm, {name}")


def _refuse_other_bodies(state: Mapping[str, Tensor]) -> None:
    body = [f"backbone.bottom_up.{layer}.weight" for layer in ("stem.conv1", "res2.0.conv1")]
    if any(name not in state for name in body):
        raise _refusal("the backbone is no ResNet of its own with one convolution as its stem")


def _is_grouped(state: Mapping[str, Tensor]) -> bool:
    first, second = (f"backbone.bottom_up.res2.0.conv{n}.weight" for n in (1, 2))
    return first in state and second in state and len(state[first]) != state[second].shape[1]


def _renamed(state: Mapping[str, Tensor], first: int) -> dict[str, Tensor]:
    """Rename tensors to torchvision's names; the pyramid's finest level is Detectron2's level `first`."""
    convs = sum(bool(re.fullmatch(r"roi_heads\.box_head\.conv\d\.weight", name)) for name in state)
    rules = (
        *_LAYERS,
        (r"backbone\.fpn_lateral(\d)", "backbone.fpn.inner_blocks.{}.0", lambda n: n - first),
        (r"backbone\.fpn_output(\d)", "backbone.fpn.layer_blocks.{}.0", lambda n: n - first),
        (r"roi_heads\.box_head\.fc(\d)", "roi_heads.box_head.{}", lambda n: convs + n if convs else f"fc{n + 5}"),
    )
    renamed = {}
    for name, tensor in state.items():
        if _LEFT_ASIDE.fullmatch(name):
            continue
        (layer, norm, kind), *_ = re.findall(r"^(.+?)(\.norm)?\.?(\w+)$", name)
        found = ((re.fullmatch(pattern, layer), new, number) for pattern, new, number in rules)
        match, new, number = next((rule for rule in found if rule[0]), (None, "", int))
        if match is None:
            raise _refusal(f"it has a layer {layer}")
        digits = [number(int(match[1] or 0)), *match.groups()[1:]] if match.groups() else []
        renamed[f"{_norm_of(new.format(*digits)) if norm else new.format(*digits)}.{kind}"] = tensor
    return renamed


def _norm_of(conv: str) -> str:
    """Return the name of the norm behind a convolution, which stands in torchvision's body or in a pair of both."""
    return (
        re.sub(r"conv(\d)$", r"bn\1", conv)
        if conv.startswith(f"{DETECTOR_BODY}") and "conv" in conv
        else (conv.removesuffix("0") + "1")
    )


def _classes(state: Mapping[str, Tensor], values: Detectron2Config) -> int:
    """Return how many classes the converted detector tells apart, the background counted."""
    if "roi_heads.box_predictor.cls_score.bias" in state:
        return len(state["roi_heads.box_predictor.cls_score.bias"])
    sizes, ratios = anchor_counts(values)
    return len(state["head.classification_head.cls_logits.bias"]) // (sizes * ratios)


def _reorder(state: dict[str, Tensor], values: Detectron2Config, family: Family) -> None:
    """Give the predictors torchvision's rows, in place: the background first, anchors ratio by ratio."""
    sizes, ratios = anchor_counts(values)
    for kind in ("weight", "bias"):
        if family == "retinanet":
            logits, boxes = f"head.classification_head.cls_logits.{kind}", f"head.regression_head.bbox_reg.{kind}"
            of_anchor = _by_ratio(state[logits], sizes, ratios)
            background = torch.full_like(of_anchor[:, :1], _NEVER if kind == "bias" else 0.0)
            state[logits] = torch.cat([background, of_anchor], dim=1).flatten(0, 1)
            weights = values["MODEL.RETINANET.BBOX_REG_WEIGHTS"]
        else:
            logits, boxes = f"rpn.head.cls_logits.{kind}", f"rpn.head.bbox_pred.{kind}"
            state[logits] = _by_ratio(state[logits], sizes, ratios).flatten(0, 1)
            weights = values["MODEL.RPN.BBOX_REG_WEIGHTS"]
        deltas = _by_ratio(state[boxes], sizes, ratios)
        scale = torch.tensor(weights).to(deltas).view(1, 4, *[1] * (deltas.ndim - 2))
        state[boxes] = (deltas / scale).flatten(0, 1)
        if family != "retinanet":
            _put_background_first(state, kind)


def _by_ratio(rows: Tensor, sizes: int, ratios: int) -> Tensor:
    """Reorder rows of anchors, given size by size and within a size ratio by ratio, to ratio by ratio and within a
    ratio size by size: (anchors, rows of each, ...)."""
    if len(rows) % (sizes * ratios):
        raise ValueError(f"{len(rows)} rows of a predictor for {sizes} sizes and {ratios} aspect ratios of anchors")
    split = rows.view(sizes, ratios, -1, *rows.shape[1:])
    return split.transpose(0, 1).flatten(0, 1)


def _put_background_first(state: dict[str, Tensor], kind: str) -> None:
    """Put the background first in the heads of an R-CNN, in place; rows shared by all classes are copied for each."""
    scores = state[f"roi_heads.box_predictor.cls_score.{kind}"]
    state[f"roi_heads.box_predictor.cls_score.{kind}"] = scores.roll(1, dims=0)
    for name, rows in ((f"roi_heads.box_predictor.bbox_pred.{kind}", 4),
                       (f"roi_heads.mask_predictor.mask_fcn_logits.{kind}", 1)):  # fmt: skip
        if name in state:
            found = state[name]
            repeats = (len(scores) - 1) * rows // len(found)
            every = found.repeat(repeats, *[1] * (found.ndim - 1))
            state[name] = torch.cat([torch.zeros_like(every[:rows]), every])


def _geometry(state: Mapping[str, Tensor], values: Detectron2Config) -> dict[str, list[list[int]]]:
    """Return what a file tells of convolutions where a stage's stride stands in its first 1x1 one, not in the 3x3
    one."""
    if not values["MODEL.RESNETS.STRIDE_IN_1X1"]:
        return {}
    one, two, none = [1, 1], [2, 2], [0, 0]
    blocks = [f"{DETECTOR_BODY}layer{stage}.0." for stage in (2, 3, 4)]
    bottlenecks = [block for block in blocks if f"{block}conv3.weight" in state]
    return {
        f"{block}{conv}": geometry
        for block in bottlenecks
        for conv, geometry in (("conv1", [two, none, one]), ("conv2", [one, one, one]))
    }
