"""Tiny networks of every kind and body, which run in milliseconds."""

import torch
from reference import perturb_batch_norms
from torch import nn

from norton_det.compression.building import build_network
from norton_det.models.parts import dense_head
from norton_det.models.settings import read_settings, write_settings
from norton_det.models.structure import KINDS, named_structure

SIZES = {"channels": 64, "box": 32, "mask": 16, "keypoint": 16}
"""Of pyramid and heads: GroupNorm wants 32 groups of more than one channel."""
BODIES = ("resnet18", "resnet50", "resnet101", "resnext50_32x4d")
ALL_KINDS = tuple(KINDS)
LITTLE = {"min_size": (64,), "max_size": 96}
"""Images, in pixels."""
FEW = {
    **{f"rpn_{when}_nms_top_n_{mode}": 50 for when in ("pre", "post") for mode in ("train", "test")},
    **{"box_batch_size_per_image": 32, "box_detections_per_img": 20, "topk_candidates": 50, "detections_per_img": 20},
    **{"box_score_thresh": 0.0, "score_thresh": 0.0},
}
"""Proposals and detections, of whatever score; a kind of detector has some of these settings."""


def tiny_detector(kind="faster_rcnn", body="resnet50", plan=None, *, classes=3, width=0.125, seed=0, **sizes):
    """A detector with random weights and trained-looking statistics, in evaluation mode, that finds something."""
    torch.manual_seed(seed)
    width = 1.0 if body.startswith("resnext") else width
    detector = build_network(named_structure(kind, body, classes, **SIZES | sizes), plan, width)
    own = read_settings(detector)
    write_settings(detector, {name: value for name, value in (LITTLE | FEW).items() if name in own})
    for layer in dense_head(detector).modules():
        if isinstance(layer, nn.Conv2d):  # torchvision draws them so small that all places look alike
            nn.init.kaiming_normal_(layer.weight)
    return perturb_batch_norms(detector).eval()


def tiny_classifier(body="resnet50", plan=None, *, classes=10, width=0.125, seed=0):
    """A classifier likewise."""
    torch.manual_seed(seed)
    width = 1.0 if body.startswith("resnext") else width
    return perturb_batch_norms(build_network(named_structure(None, body, classes), plan, width)).eval()


def frames(count=2, height=80, width=100, seed=3):
    """Random images, float RGB (3, height, width) in 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, height, width, generator=generator) for _ in range(count)]


def kind_name(structure):
    """Which of KINDS a structure is, or is nearest to; None for a classifier."""
    v2 = structure.tower_norm or structure.rpn_convs > 1 or structure.box_convs > 0
    name = structure.kind
    return f"{name}_v2" if name and v2 and f"{name}_v2" in KINDS else name
