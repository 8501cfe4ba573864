"""Rebuilds a network from its tensors and from what is told of it: its modules, their widths and its settings."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.models.channels import DETECTOR_BODY
from norton_det.models.fit import fit, set_geometry, set_norm_eps
from norton_det.models.norms import ORDINARY_EPS
from norton_det.models.parts import dense_head, regions
from norton_det.models.recognise import read_structure
from norton_det.models.settings import write_settings
from norton_det.models.structure import Structure, template

OF_STRUCTURE = ("geometry", "norm_eps", "returned_layers", "extra_levels", "tower_groups")
"""The keys that a file tells of a network's structure, which are no settings of a detector."""


def rebuild(state: Mapping[str, torch.Tensor], told: Mapping[str, Any], strict: bool = True) -> nn.Module:
    """Build the network that tensors and what is told of them describe, on the meta device.

    Without `strict`, layers that have no tensors stay as torchvision builds them. Raises ValueError where tensors and
    told values make no network.
    """
    structure = read_structure(state, told)
    model = template(structure)
    fit(model, state, strict)
    set_geometry(model, told.get("geometry", {}))
    set_norm_eps(model, DETECTOR_BODY if structure.kind else "", float(told.get("norm_eps", ORDINARY_EPS)))
    if structure.kind:
        write_settings(model, {name: value for name, value in told.items() if name not in OF_STRUCTURE})
    _check_shapes(_without_norms(model.eval()), structure)
    return model


@torch.no_grad()
def _check_shapes(model: Any, structure: Structure) -> None:
    """Run the networks on the meta device, which computes shapes only. Raises ValueError where they do not fit."""
    image = torch.empty(1, 3, 256, 256, device="meta")  # GroupNorm takes no map of one pixel
    try:
        if structure.kind is None:
            model(image)
            return
        levels = model.backbone(image)
        dense_head(model)(list(levels.values()))
        for pooler, head, predictor in regions(model).values():
            predictor(head(image.new_empty(2, model.backbone.out_channels, *pooler.output_size)))
    except RuntimeError as error:
        raise ValueError(f"layers do not fit together: {str(error).splitlines()[0]}") from None
    for kind, region in regions(model).items():
        if unknown := set(region.pooler.featmap_names) - set(levels):
            raise ValueError(f"{kind}_roi_pool reads {sorted(unknown)}, the pyramid has {', '.join(levels)}")
    if len(_anchors(model).sizes) != len(levels):
        raise ValueError(f"anchors of {len(_anchors(model).sizes)} levels, but the pyramid has {len(levels)}")
    check_anchors(model)


def _without_norms(model: nn.Module) -> nn.Module:
    """Return a copy whose BatchNorms only check the number of channels: on the meta device they take long."""
    light = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            light.set_submodule(name, _ChannelCheck(len(module.weight)))
    return light


class _ChannelCheck(nn.Module):
    """Gives maps (N, C, H, W) as they are. Raises RuntimeError for another number of channels than its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != self.channels:
            raise RuntimeError(f"a norm of {self.channels} channels reads {x.shape[1]}")
        return x


def check_anchors(detector: Any) -> None:
    """Raise ValueError where a detector's anchors have more or fewer boxes at a place than its head predicts."""
    head: Any = dense_head(detector)
    boxes = head.bbox_pred if isinstance(head, RPNHead) else head.regression_head.bbox_reg
    predicted, found = boxes.out_channels // 4, set(_anchors(detector).num_anchors_per_location())
    if found != {predicted}:
        raise ValueError(
            f"anchors of {', '.join(map(str, sorted(found)))} boxes a place, but the head predicts {predicted};"
            " weights that do not say their sizes and aspect ratios can only have torchvision's"
        )


def _anchors(detector: Any) -> Any:
    return detector.rpn.anchor_generator if hasattr(detector, "rpn") else detector.anchor_generator
