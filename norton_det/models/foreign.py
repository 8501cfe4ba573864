"""Turns the tensor names of files from elsewhere into torchvision's of today, and into ours for CP layers."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)
_CONTAINERS = ("model", "state_dict", "model_state_dict", "model_ema")
"""The names of a dictionary of weights in a file that holds more than one; the first that is there is taken."""
_ANCHORS = ("backbone.body.conv1.weight", "conv1.weight")
"""The first tensor of a detector and of a classifier: what stands before its name in a file is a wrapper's prefix."""
_OLD_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"(rpn\.head\.conv)\.(weight|bias)", r"\1.0.0.\2"),
)
_PUBLISHED = (
    (r"(.*)\.feature\.pointwise\.weight", r"\1.channel"),
    (r"(.*)\.feature\.(vertical|horizontal)\.weight", r"\1.\2"),
)
"""Names in the published NORTON checkpoints, and ours."""


def find_weights(content: Mapping[Any, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a file's content into its tensors by name, without their wrappers, and what it says beside them.

    Returns an empty dictionary of tensors where there are none.
    """
    held = [key for key in _CONTAINERS if isinstance(content.get(key), Mapping)]
    tensors: Mapping[Any, Any] = content[held[0]] if held else content
    if len(held) > 1:
        log.info("the file holds %s: %s is taken", " and ".join(held), held[0])
    metadata = {str(key): value for key, value in content.items() if key not in held} if held else {}
    state = {_unwrapped(str(name)): tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    state.pop("n_averaged", None)  # of torch's AveragedModel
    return _without_prefix(state), metadata


def _unwrapped(name: str) -> str:
    """Take off the prefixes that torch's own wrappers put before a name; published NORTON checkpoints have one in
    places."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefix of another wrapper, such as `model.`: whatever stands before the name of the first
    layer."""
    for anchor in _ANCHORS:
        prefixes = [name.removesuffix(anchor) for name in state if name == anchor or name.endswith(f".{anchor}")]
        prefixes = [p for p in prefixes if not re.search(r"layer\d+\.\d+\.$", p)]
        if prefixes:
            break
    else:
        return state
    prefix = min(prefixes, key=len)
    if anchor == "conv1.weight" and f"{prefix}fc.weight" not in state:
        return state  # the body of something else, or what remains of a bare classifier
    if len({p for p in prefixes if len(p) == len(prefix)}) > 1:
        raise ValueError(f"holds several networks, under {', '.join(prefixes)}: expected one")
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    aside = [name for name in state if not name.startswith(prefix)]
    if aside:
        log.info("tensors beside the network under %r are left aside: %s", prefix, ", ".join(aside[:4]))
    return inside


def todays_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors from before torchvision 0.13, and those of published NORTON checkpoints."""
    rules = [*_OLD_NAMES, *_PUBLISHED]
    has_ctrness = any("bbox_ctrness" in name for name in state)
    is_old_retinanet = "head.classification_head.conv.0.weight" in state and not has_ctrness
    renamed = {}
    for name, tensor in state.items():
        if is_old_retinanet and (match := re.fullmatch(r"(head\.\w+_head\.conv)\.(\d)\.(weight|bias)", name)):
            name = f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}"
        elif match := re.fullmatch(r"(roi_heads\.mask_head)\.mask_fcn(\d+)\.(weight|bias)", name):
            name = f"{match[1]}.{int(match[2]) - 1}.0.{match[3]}"
        for pattern, replacement in rules:
            name = re.sub(f"^{pattern}$", replacement, name)
        renamed[name] = tensor
    return _with_cp_shapes(renamed)


def _with_cp_shapes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reshape published factors, which are convolution weights, from (R*K, C, 1, 1) to (R, K, C) and so on."""
    for name, value in list(state.items()):
        if value.ndim == 4 and name.rsplit(".", 1)[-1] in ("channel", "vertical", "horizontal"):
            filters = len(state[name.rsplit(".", 1)[0].replace("conv", "bn") + ".weight"])
            state[name] = value.reshape(len(value) // filters, filters, -1)
    return state


_TODAYS_SETTINGS = {
    "min_size": "min_size",
    "max_size": "max_size",
    "rpn_rois": "rpn_batch_size_per_image",
    "box_rois": "box_batch_size_per_image",
    "score_threshold": "box_score_thresh",
    "detections": "box_detections_per_img",
}


def todays_description(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what our files say of their network; an older file, without `network`, is translated to today's
    words."""
    told = metadata.get("network", metadata.get("detector", {}))
    if not isinstance(told, Mapping):
        raise ValueError(f"network: expected what is told of a network by name, got {told!r}")
    if "network" in metadata or not told:
        return dict(told)
    translated = {new: told[old] for old, new in _TODAYS_SETTINGS.items() if old in told}
    if "anchor_sizes" in told:
        sizes = told["anchor_sizes"]
        translated["rpn_anchor_generator"] = {
            "sizes": [[size] for size in sizes],
            "aspect_ratios": [[0.5, 1.0, 2.0]] * len(sizes),
        }
    for when, suffix in (("train_proposals", "train"), ("test_proposals", "test")):
        if when in told:
            translated[f"rpn_pre_nms_top_n_{suffix}"] = translated[f"rpn_post_nms_top_n_{suffix}"] = told[when]
    if "norm_eps" in told:
        translated["norm_eps"] = told["norm_eps"]
    return translated
