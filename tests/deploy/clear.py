"""Tiny detectors whose detections rounding does not choose, and what they are compared by."""

import torch
from detectors import tiny_detector
from torch import nn

from norton_det.models.settings import write_settings

SIZES = ((120, 160), (85, 128), (128, 85), (97, 131))
FEW_CONVS = {"tower_convs": 1, "mask_convs": 1, "keypoint_convs": 1}
SPREADS = {"cls_logits": 1.0, "cls_score": 1.0, "bbox_pred": 0.1, "bbox_reg": 0.1}
"""Standard deviations of what the predictors give: scores that lie apart, and boxes that stay near their small
anchors. Of equal scores, and of twin boxes, both cut to the image, rounding chooses one."""
CATEGORIES = ["__background__", "a", "b", "c", "d"], [0, 1, 2, 4, 8]


def clear_detector(kind, plan=None, body="resnet50", **sizes):
    """Images of SIZES are enlarged; the first twelve of few candidates are kept."""
    detector = tiny_detector(kind, body, plan, **{"classes": 5, "channels": 64, "box": 64, **FEW_CONVS, **sizes})
    detector.categories, detector.category_ids = CATEGORIES
    few = {"min_size": (160,), "max_size": 266}
    if hasattr(detector, "rpn"):
        few |= {"rpn_pre_nms_top_n_test": 30, "rpn_post_nms_top_n_test": 30, "box_detections_per_img": 12}
        few["rpn_anchor_generator"] = anchors((1.0,))
    else:
        few |= {"topk_candidates": 40, "detections_per_img": 12}
    if kind.startswith("retinanet"):
        few["anchor_generator"] = anchors((1.0, 1.26, 1.59))
    write_settings(detector, few)
    if kind == "fcos":
        nn.init.ones_(detector.head.regression_head.bbox_reg.bias)  # without which boxes have no area
    for name, layer in detector.named_modules():
        if name.split(".")[-1] in SPREADS and isinstance(layer, nn.Conv2d | nn.Linear):
            spread(detector, layer, SPREADS[name.split(".")[-1]])
    return detector


def anchors(sizes):
    return {"sizes": [[8 * 2**level * size for size in sizes] for level in range(5)],
            "aspect_ratios": [[0.5, 1.0, 2.0]] * 5}  # fmt: skip


@torch.no_grad()
def spread(detector, layer, deviation):
    """Scale a layer's weights so that what it gives on an image has a standard deviation."""
    given = []
    handle = layer.register_forward_hook(lambda module, inputs, output: given.append(output.flatten()))
    detector([pictures()[0]])
    handle.remove()
    layer.weight.mul_(deviation / torch.cat(given).std())


def pictures():
    return [torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) for size in SIZES]


@torch.no_grad()
def detect(detector, images):
    """One at a time: in a batch the smaller images are padded, which their detections feel."""
    return [detector([image])[0] for image in images]


def require_little(detector, images):
    """Set a score that only some of the images reach; returns one that does, and one that does not."""
    best = [found["scores"].max().item() for found in detect(detector, images)]
    owner = detector.roi_heads if hasattr(detector, "roi_heads") else detector
    owner.score_thresh = (min(best) + max(best)) / 2
    return images[best.index(max(best))], images[best.index(min(best))]


def assert_same_detections(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert set(ours) == set(theirs)
        assert len(ours["boxes"]) == len(theirs["boxes"]) > 0
        assert torch.equal(ours["labels"], theirs["labels"])
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-2)
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-4)
        if "masks" in ours:
            assert ours["masks"].shape == theirs["masks"].shape
            torch.testing.assert_close(ours["masks"], theirs["masks"], rtol=0, atol=0.05)
        if "keypoints" in ours:
            assert (ours["keypoints"] - theirs["keypoints"]).abs().max() < 0.5
