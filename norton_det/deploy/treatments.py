"""The ways in which a detector can be made to run, side by side, and a workload that is the same for all."""

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from norton_det.analysis.watch import watch_inputs
from norton_det.deploy.optimize import Runtime, optimize
from norton_det.deploy.runtimes import Precision

SHIPPED = "torch as shipped"
OPTIMISED: dict[str, tuple[Runtime, Precision]] = {
    "torch": ("torch", "float32"),
    "torch bfloat16": ("torch", "bfloat16"),
    "torch float16": ("torch", "float16"),
    "onnxruntime": ("onnxruntime", "float32"),
    "openvino": ("openvino", "float32"),
    "openvino bfloat16": ("openvino", "bfloat16"),
    "openvino int8": ("openvino", "int8"),
}
"""What `optimize` is asked for, by the treatment's name."""
TREATMENTS = (SHIPPED, *OPTIMISED)


def usable_treatments(device: torch.device) -> list[str]:
    """The treatments that a device and the installed packages allow; on a CPU no float16, and bfloat16 where it has
    instructions for it."""
    if device.type == "cuda":
        return [SHIPPED, "torch", "torch bfloat16", "torch float16"]
    return [
        name
        for name in TREATMENTS
        if name != "torch float16"
        and ("bfloat16" not in name or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and (name == SHIPPED or importlib.util.find_spec(OPTIMISED[name][0]))
        and (name != "openvino int8" or importlib.util.find_spec("nncf"))
    ]


def treated(detector: GeneralizedRCNN, treatment: str, images: Sequence[Tensor]) -> Any:
    """A detector as a treatment runs it; `images` as `optimize` takes them.

    As shipped is as torchvision runs it: BatchNorm not folded, layers in the contiguous layout.
    """
    if treatment == SHIPPED:
        return copy.deepcopy(detector).to(memory_format=torch.contiguous_format).eval()
    return optimize(detector, images, *OPTIMISED[treatment])


@torch.no_grad()
def fix_workload(detector: GeneralizedRCNN, detections: int) -> None:
    """Make a detector with random weights do what a trained one does, in place, whatever its weights.

    Proposals are the anchors themselves, so that NMS leaves full-size models all that they may have, and small ones
    about as many; every proposal is called the first class with a score above the threshold and no other; of the
    detections that NMS leaves the best `detections` go to the mask and keypoint heads.
    """
    rpn, heads = detector.rpn.head, detector.roi_heads
    for parameter in (rpn.bbox_pred.weight, rpn.bbox_pred.bias, heads.box_predictor.bbox_pred.weight):
        parameter.zero_()
    heads.box_predictor.cls_score.weight.mul_(0.01)
    heads.box_predictor.cls_score.bias.zero_()[1] = 6.0
    heads.detections_per_img = detections


@torch.inference_mode()
def count_regions(detector: GeneralizedRCNN, images: Sequence[Tensor]) -> dict[str, int]:
    """How many regions each head of a detector sees: {"box": .., "mask": .., "keypoint": ..}."""
    kinds = ("box", "mask", "keypoint")
    heads = {kind: getattr(detector.roi_heads, f"{kind}_head", None) for kind in kinds}
    seen: dict[str, int] = {}
    with watch_inputs(
        {kind: head for kind, head in heads.items() if head is not None}, lambda kind, x: seen.update({kind: len(x)})
    ):
        detector(list(images))
    return seen
