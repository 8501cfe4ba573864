"""Gives the layers of a template the widths, ranks, norms and geometry of a file that no configuration describes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.layers.cp_conv import CPConv2d
from norton_det.layers.low_rank_linear import LowRankLinear
from norton_det.models.channels import DETECTOR_BODY, NORMS
from norton_det.models.recognise import State, has_layer, inputs_of, outputs_of


def fit(model: nn.Module, state: State, strict: bool = True) -> None:
    """Give each layer of a template, in place, the widths, rank, bias and norm that the tensors have.

    Without `strict` a layer without a weight in `state` stays as it is; a classifier's last layer then reads what the
    body gives. Raises ValueError naming a tensor that is missing or has another kernel size.
    """
    for name, layer in list(model.named_modules()):
        if not strict and not any(f"{name}.{tensor}" in state for tensor in ("weight", "channel", "down.weight")):
            continue
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            fitted = _fitted_layer(name, layer, state)
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            fitted = _fitted_norm(name, layer, state)
        else:
            continue
        model.set_submodule(name, fitted)
    if isinstance(model, ResNet) and not has_layer(state, "fc"):
        *_, last = (module for module in model.modules() if isinstance(module, NORMS))
        model.fc = nn.Linear(len(last.weight), model.fc.out_features, device="meta")


def set_geometry(model: nn.Module, geometry: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Give convolutions, by name, their stride, padding and dilation, each a pair of pixels.

    Raises ValueError for a name that is no convolution's, and for values that are no such pairs.
    """
    convs = _convolutions(model)
    if not isinstance(geometry, Mapping):
        raise ValueError(
            f"geometry: expected stride, padding and dilation by name of a convolution, got {geometry!r}"
        )
    for name, values in geometry.items():
        try:
            pairs = [tuple(int(side) for side in pair) for pair in values]
        except (TypeError, ValueError):
            pairs = []
        if name not in convs or [len(pair) for pair in pairs] != [2, 2, 2] or min(map(min, pairs)) < 0:
            raise ValueError(f"geometry of {name}: expected stride, padding and dilation in pairs, got {values!r}")
        convs[name].stride, convs[name].padding, convs[name].dilation = pairs


def read_geometry(model: nn.Module, ordinary: nn.Module) -> dict[str, list[list[int]]]:
    """Return the geometry of the convolutions that have another one in `ordinary`, in the form that `set_geometry`
    takes."""
    theirs = _convolutions(ordinary)
    return {
        name: [list(pair) for pair in _geometry(conv)]
        for name, conv in _convolutions(model).items()
        if name in theirs and _geometry(conv) != _geometry(theirs[name])
    }


def _convolutions(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | CPConv2d)}


def _geometry(conv: Any) -> tuple[Any, ...]:
    return tuple(conv.stride), conv.padding if isinstance(conv.padding, str) else tuple(conv.padding), tuple(
        conv.dilation
    )  # fmt: skip


def _fitted_layer(name: str, layer: Any, state: State) -> nn.Module:
    bias = f"{name}.bias" in state
    if isinstance(layer, nn.Linear):
        if f"{name}.down.weight" in state:
            inputs, rank = inputs_of(state, name), len(state[f"{name}.down.weight"])
            with torch.device("meta"):
                return LowRankLinear(inputs, outputs_of(state, name), rank)
        return nn.Linear(inputs_of(state, name), outputs_of(state, name), bias, device="meta")
    geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "bias": bias}
    if f"{name}.channel" in state:
        factors = [state[f"{name}.{factor}"] for factor in ("channel", "vertical", "horizontal")]
        if [factor.ndim for factor in factors] != [3, 3, 3]:
            raise ValueError(f"{name}: its factors have the shapes {[tuple(f.shape) for f in factors]}")
        (rank, filters, inputs), *_ = (factor.shape for factor in factors)
        return CPConv2d(inputs, filters, layer.kernel_size, rank, **geometry, device="meta")
    if f"{name}.weight" not in state:
        raise ValueError(f"weights are incomplete, missing {name}.weight")
    shape = tuple(state[f"{name}.weight"].shape)
    if shape[2:] != layer.kernel_size or len(shape) != 4:
        kernel = (*shape[:2], *layer.kernel_size)
        raise ValueError(f"weights do not fit: {name}.weight {shape} for {kernel}")
    if isinstance(layer, nn.ConvTranspose2d):
        return nn.ConvTranspose2d(shape[0], shape[1], shape[2:], **geometry, device="meta")
    groups = _groups(name, shape[1], state)
    return nn.Conv2d(shape[1] * groups, shape[0], layer.kernel_size, groups=groups, **geometry, device="meta")


def _groups(name: str, inputs_of_group: int, state: State) -> int:
    """Return the groups of a convolution: only a Bottleneck's 3x3 one may be grouped, and the convolution before it
    tells how many inputs it has."""
    block, _, last = name.rpartition(".")
    if last != "conv2" or not has_layer(state, f"{block}.conv3"):
        return 1
    return max(1, outputs_of(state, f"{block}.conv1") // inputs_of_group)


def _fitted_norm(name: str, norm: Any, state: State) -> nn.Module:
    width = outputs_of(state, name)
    if isinstance(norm, nn.GroupNorm):
        return nn.GroupNorm(norm.num_groups, width, norm.eps, device="meta")
    is_detector = has_layer(state, f"{DETECTOR_BODY}conv1")  # an old classifier's file lacks the counters too
    is_frozen = is_detector and f"{name}.num_batches_tracked" not in state
    if is_frozen:
        with torch.device("meta"):
            frozen: nn.Module = FrozenBatchNorm2d(width, norm.eps)
        return frozen
    return nn.BatchNorm2d(width, norm.eps, device="meta")


def set_norm_eps(model: nn.Module, prefix: str, eps: float) -> None:
    """Set the eps of every BatchNorm below a prefix, trainable or frozen, in place."""
    for name, module in model.named_modules():
        if isinstance(module, NORMS) and name.startswith(prefix):
            module.eps = eps
