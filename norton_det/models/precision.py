"""Lower precision where it is safe: in a detector's networks, and nowhere else."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def networks_in(detector: GeneralizedRCNN, precision: torch.dtype) -> Iterator[None]:
    """While it lasts, the detector's networks run under autocast and hand on float32.

    The networks are the body with its pyramid, the RPN's head, and the heads and predictors of regions: all
    convolutions and linear layers. The rest stays in float32: anchors, box coding, NMS, losses, mask pasting.
    With torch.float32 nothing changes.
    """
    changed = networks(detector) if precision != torch.float32 else []
    for network in changed:
        setattr(network, "forward", _autocast(network.forward, precision))  # noqa: B010, over the class's method
    try:
        yield
    finally:
        for network in changed:
            del network.forward


def networks(detector: GeneralizedRCNN) -> list[nn.Module]:
    """The parts of a detector that hold its convolutions and linear layers."""
    kinds = ("box", "mask", "keypoint")
    heads = [getattr(detector.roi_heads, f"{kind}_{part}") for kind in kinds for part in ("head", "predictor")]
    return [detector.backbone, detector.rpn.head, *(head for head in heads if head is not None)]


def _autocast(forward: Any, precision: torch.dtype) -> Any:
    @wraps(forward)
    def lowered(inputs: Any) -> Any:
        with torch.autocast(_device_type(inputs), precision):
            return _in_float32(forward(inputs))

    return lowered


def _device_type(inputs: Tensor | list[Tensor]) -> str:
    return (inputs if isinstance(inputs, Tensor) else inputs[0]).device.type


def _in_float32(value: Any) -> Any:
    """Tensors, also in lists, tuples and mappings."""
    if isinstance(value, Tensor):
        return value.float()
    if isinstance(value, Mapping):
        return type(value)((key, _in_float32(item)) for key, item in value.items())  # type: ignore[call-arg]
    return type(value)(_in_float32(item) for item in value)
