"""Lists the treatments, ways to run a detector, and makes a workload that is the same for all of them."""

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from norton_det.analysis.watch import watch_inputs
from norton_det.deploy.optimize import SUPPORTED, Runtime, optimize
from norton_det.deploy.runtimes import Precision
from norton_det.models.parts import regions

SHIPPED = "torch as shipped"
OPTIMISED: dict[str, tuple[Runtime, Precision]] = {
    runtime if precision == "float32" else f"{runtime} {precision}": (runtime, precision)
    for runtime, precisions in SUPPORTED.items()
    for precision in precisions
}
"""The runtime and the precision for `optimize`, by the treatment's name, such as `openvino int8`."""
TREATMENTS = (SHIPPED, *OPTIMISED)
FLOAT32 = (SHIPPED, *(name for name, (_, precision) in OPTIMISED.items() if precision == "float32"))
_SPREAD = 0.01
"""Factor of the random weights of scores, which then rank candidates but decide nothing else."""


def usable_treatments(device: torch.device) -> list[str]:
    """Return the treatments that a device and the installed packages allow; on a CPU never float16, and bfloat16 only
    if it has instructions for it."""
    if device.type == "cuda":
        return [SHIPPED, "torch", "torch bfloat16", "torch float16"]
    return [name for name in TREATMENTS if name == SHIPPED or runs_on_cpu(*OPTIMISED[name])]


def runs_on_cpu(runtime: Runtime, precision: Precision) -> bool:
    """Tell whether the installed packages and this CPU's instructions allow a precision in a runtime."""
    return (
        precision != "float16"
        and (precision != "bfloat16" or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and importlib.util.find_spec(runtime) is not None
        and (precision != "int8" or importlib.util.find_spec("nncf") is not None)
    )


def treated(detector: Any, treatment: str, images: Sequence[Tensor]) -> Any:
    """Return a detector as a treatment runs it; `images` are as for `optimize`.

    "As shipped" is as torchvision runs it: BatchNorm is not folded, and layers have the contiguous layout.
    """
    if treatment == SHIPPED:
        return copy.deepcopy(detector).to(memory_format=torch.contiguous_format).eval()
    return optimize(detector, images, *OPTIMISED[treatment])


@torch.no_grad()
def fix_workload(detector: Any, detections: int) -> None:
    """Make a detector with random weights do as much work as a trained one, in place, whatever its weights.

    Candidates are the anchors themselves, so that NMS leaves full-size models the most that they may have, and small
    ones about as many. Each candidate has a score above the threshold for one class only. Of what NMS leaves, the
    best `detections` are found, and go to the mask and keypoint heads. In a one-stage detector each level has the
    most candidates that it may have.
    """
    if regions(detector):
        _fix_proposals(detector.rpn.head, detector.roi_heads.box_predictor)
        detector.roi_heads.detections_per_img = detections
    else:
        _fix_places(detector.head.classification_head, detector.head.regression_head)
        detector.detections_per_img = detections


def _fix_proposals(rpn: Any, predictor: Any) -> None:
    for parameter in (rpn.bbox_pred.weight, rpn.bbox_pred.bias, predictor.bbox_pred.weight):
        parameter.zero_()
    predictor.cls_score.weight.mul_(_SPREAD)
    predictor.cls_score.bias.zero_()[1] = 6.0


def _fix_places(classes: Any, boxes: Any) -> None:
    """Set the biases of a one-stage detector's heads.

    Scores are sigmoids, so those of all other classes must be low. FCOS multiplies scores by its centreness, and its
    boxes reach from the middle of an anchor to its four sides, half its length away.
    """
    classes.cls_logits.weight.mul_(_SPREAD)
    classes.cls_logits.bias.fill_(-10.0).view(-1, classes.num_classes)[:, 1] = 3.0
    boxes.bbox_reg.weight.zero_()
    is_fcos = hasattr(boxes, "bbox_ctrness")
    boxes.bbox_reg.bias.fill_(0.5 if is_fcos else 0.0)
    if is_fcos:
        boxes.bbox_ctrness.weight.mul_(_SPREAD)
        boxes.bbox_ctrness.bias.fill_(3.0)


@torch.inference_mode()
def count_regions(detector: Any, images: Sequence[Tensor]) -> dict[str, int]:
    """Count the regions that each head of a detector sees, by REGION_KINDS; a one-stage detector has none."""
    seen: dict[str, int] = {}
    heads = {kind: region.head for kind, region in regions(detector).items()}
    with watch_inputs(heads, lambda kind, x: seen.update({kind: len(x)})):
        detector(list(images))
    return seen
