"""Parameters and multiply-accumulate operations (MACs), part by part.

Convolutions and linear layers are counted, nothing else: no BatchNorm, no activations, no RoIAlign. A CP
convolution is counted twice: by the paper's formula for its separable stack, and in the form that runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

PROPOSALS = 1000
"""Regions that the box head is counted with; the mask and keypoint heads are counted with one."""
OUTSIDE_TOTAL = "mask_head"
"""The part that published figures leave out of a detector's MACs: it is reported, not added."""
_COUNTED_OPERATIONS = ("conv", "linear", "addmm", "matmul", "mm")


@dataclass(frozen=True)
class Count:
    """Parameters, trainable BatchNorm included; MACs by the paper's formula, and as the module runs."""

    parameters: int
    macs: int
    macs_as_run: int


def count(module: nn.Module, *inputs: Any) -> dict[str, Count]:
    """Counts by name of every submodule on the given inputs; the whole is under the name ""."""
    analysis = FlopCountAnalysis(module.eval(), inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    as_run = {
        name: sum(int(operators[operation]) for operation in _COUNTED_OPERATIONS)
        for name, operators in analysis.by_module_and_operator().items()
    }
    corrections = {name: macs - as_run[name] for name, macs in _separable_macs(module, inputs).items()}
    counts = {}
    for name, submodule in module.named_modules():
        inside = [change for layer, change in corrections.items() if not name or f"{layer}.".startswith(f"{name}.")]
        parameters = sum(p.numel() for p in submodule.parameters())
        counts[name] = Count(parameters, as_run[name] + sum(inside), as_run[name])
    return counts


def count_detector(detector: Any, height: int, width: int) -> dict[str, Count]:
    """Counts of a torchvision R-CNN's parts on one image of (height, width) pixels, as it enters the body.

    Parts: body, neck, rpn, box_head (PROPOSALS regions), and mask_head or keypoint_head (one region) where the
    detector has them; each head includes its predictor.
    """
    image = torch.zeros(1, 3, height, width)
    with torch.no_grad():
        pyramid = list(detector.eval().backbone(image).values())
    backbone = count(detector.backbone, image)
    levels = [count(detector.rpn.head, [level])[""] for level in pyramid]
    parts = {
        "body": backbone["body"],
        "neck": backbone["fpn"],
        "rpn": Count(levels[0].parameters, sum(c.macs for c in levels), sum(c.macs_as_run for c in levels)),
    }
    heads = detector.roi_heads
    channels = pyramid[0].shape[1]
    regions = {"box": (PROPOSALS, 7), "mask": (1, 14), "keypoint": (1, 14)}
    for name, (number, side) in regions.items():
        head = getattr(heads, f"{name}_head", None)
        if head is not None:
            whole = nn.Sequential(head, getattr(heads, f"{name}_predictor"))
            parts[f"{name}_head"] = count(whole, torch.zeros(number, channels, side, side))[""]
    return parts


def total(parts: Mapping[str, Count]) -> Count:
    """The sum over the parts: all parameters; MACs without the mask head's."""
    counted = [part for name, part in parts.items() if name != OUTSIDE_TOTAL]
    return Count(
        sum(part.parameters for part in parts.values()),
        sum(part.macs for part in counted),
        sum(part.macs_as_run for part in counted),
    )


def _separable_macs(module: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
    """MACs of each CP convolution by the paper's formula, by the layer's name."""
    names = {layer: name for name, layer in module.named_modules() if hasattr(layer, "separable_macs")}
    macs: dict[str, int] = {}

    def record(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        count_macs: Any = layer.separable_macs
        macs[names[layer]] = count_macs(arguments[0].shape, output.shape)

    hooks = [layer.register_forward_hook(record) for layer in names]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return macs
