"""Counts parameters and multiply-accumulate operations (MACs), part by part.

Convolutions and linear layers are counted, nothing else: no BatchNorm, no activations, no RoIAlign. A CP
convolution is counted twice: by the paper's formula for its separable stack, and in the form that runs.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from norton_det.models.parts import dense_head, regions
from norton_det.models.precision import map_tensors

OUTSIDE_TOTAL = "mask_head"
"""The part that published figures leave out of a detector's MACs; it is reported but not added."""


@dataclass(frozen=True)
class Count:
    """Holds parameters, trainable BatchNorm included; MACs by the paper's formula, and as the module runs."""

    parameters: int
    macs: int
    macs_as_run: int


@torch.no_grad()
def count(module: nn.Module, *inputs: Any) -> dict[str, Count]:
    """Count every submodule on the given inputs, by its name; the whole is under the name "".

    Only the shapes of parameters and inputs matter: nothing is computed. A module that is called several times counts
    its parameters once and all its MACs.

    Examples:
        >>> count(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False)), torch.zeros(1, 3, 6, 7))["0"]
        Count(parameters=216, macs=4320, macs_as_run=4320)
    """
    shadow = copy.deepcopy(module).to("meta").eval()
    with _separable_macs(shadow) as separable, FlopCounterMode(display=False) as counter:
        shadow(*map_tensors(lambda x: x.to("meta"), inputs))
    operations = counter.get_flop_counts()  # two for each multiply-accumulate
    root = type(shadow).__name__
    as_run = {
        name: sum(operations.get(f"{root}.{name}".removesuffix("."), {}).values()) // 2
        for name, _ in shadow.named_modules()
    }
    parameters = _count_parameters(shadow)
    counts = {}
    for name in as_run:
        inside = [layer for layer in separable if not name or f"{layer}.".startswith(f"{name}.")]
        macs = as_run[name] + sum(separable[layer] - as_run[layer] for layer in inside)
        counts[name] = Count(parameters[name], macs, as_run[name])
    return counts


def _count_parameters(module: nn.Module) -> Mapping[str, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's warning, raised where fvcore is imported
        from fvcore.nn import parameter_count
    found: Mapping[str, int] = parameter_count(module)
    return found


def count_detector(detector: Any, height: int, width: int) -> dict[str, Count]:
    """Count the parts of a detector on one image of (height, width) pixels, as it enters the body.

    The parts are body, neck, and what looks at every level: rpn, or a one-stage detector's classification_head and
    regression_head. Where the detector has them, box_head (on `box_regions`), mask_head and keypoint_head (on one
    region) follow, with inputs of the size that regions are pooled to. Heads are counted with their predictors.
    """
    shadow = copy.deepcopy(detector).to("meta").eval()
    with torch.device("meta"), torch.no_grad():
        image = torch.zeros(1, 3, height, width)
        pyramid = list(shadow.backbone(image).values())
        backbone, head = count(shadow.backbone, image), count(dense_head(shadow), pyramid)
        parts = {"body": backbone["body"], "neck": backbone["fpn"]}
        found = regions(shadow)
        parts |= {"rpn": head[""]} if found else {name: head[name] for name, _ in shadow.head.named_children()}
        for kind, (pooler, of_regions, predictor) in found.items():
            pooled = torch.zeros(
                box_regions(shadow) if kind == "box" else 1, pyramid[0].shape[1], *pooler.output_size
            )
            parts[f"{kind}_head"] = count(nn.Sequential(of_regions, predictor), pooled)[""]
    return parts


def box_regions(detector: Any) -> int:
    """Return how many regions of an image a detector's box head looks at: as many as may be proposed."""
    return int(detector.rpn._post_nms_top_n["testing"])


def total(parts: Mapping[str, Count]) -> Count:
    """Add up the parts: all parameters; MACs without the mask head's."""
    counted = [part for name, part in parts.items() if name != OUTSIDE_TOTAL]
    return Count(
        sum(part.parameters for part in parts.values()),
        sum(part.macs for part in counted),
        sum(part.macs_as_run for part in counted),
    )


@contextmanager
def _separable_macs(module: nn.Module) -> Iterator[dict[str, int]]:
    """Add up each CP convolution's MACs inside the `with` block by the paper's formula, by the layer's name."""
    names = {layer: name for name, layer in module.named_modules() if hasattr(layer, "separable_macs")}
    macs = dict.fromkeys(names.values(), 0)

    def record(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        count_macs: Any = layer.separable_macs
        macs[names[layer]] += count_macs(arguments[0].shape, output.shape)

    hooks = [layer.register_forward_hook(record) for layer in names]
    try:
        yield macs
    finally:
        for hook in hooks:
            hook.remove()
