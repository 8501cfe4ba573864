"""Slices groups of tied channels: every producer, BatchNorm and consumer follows one choice."""

from collections.abc import Container, Iterable

import torch
from torch import Tensor, nn

from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.channels import Body, read_body


def slice_channels(
    model: nn.Module, producers: Iterable[tuple[str, str]], consumers: Iterable[str], kept: Tensor
) -> None:
    """Keep the channels `kept` (n,) of every producer's output and every consumer's input, in place.

    `producers` are names of (convolution, BatchNorm) pairs, `consumers` names of the layers that read them.
    """
    for conv, norm in producers:
        _slice_outputs(model.get_submodule(conv), kept)
        _slice_norm(model.get_submodule(norm), kept)
    for consumer in consumers:
        _slice_inputs(model.get_submodule(consumer), kept)


def scale_body(model: nn.Module, width: float) -> nn.Module:
    """Keep the first channels, a share `width` but at least one, of every group of a network on the meta device.

    Works in place and returns the network. Raises ValueError where grouped convolutions fix the channels.
    """
    body = read_body(model) if width != 1 else None
    for group in body.groups.values() if body else ():
        if group.fixed:
            raise ValueError(f"width {width}: grouped convolutions fix the channels of this body")
        kept = torch.arange(max(1, int(group.width * width)), device="meta")
        slice_channels(model, group.producers, group.readers, kept)
    return model


def drop_blocks(model: nn.Module, body: Body, dropped: Container[str]) -> None:
    """Leave blocks out of a model's body, in place: the others of their stage move up."""
    for stage in body.stages:
        blocks = [block.name for block in body.blocks if block.stage == stage]
        kept = [model.get_submodule(body.prefix + name) for name in blocks if name not in dropped]
        if len(kept) < len(blocks):
            model.set_submodule(body.prefix + stage, nn.Sequential(*kept))


def _slice_outputs(conv: nn.Module, kept: Tensor) -> None:
    if isinstance(conv, CPConv2d):
        conv.select_filters(kept)
        return
    assert isinstance(conv, nn.Conv2d)
    conv.weight = _parameter(conv.weight, 0, kept)
    if conv.bias is not None:
        conv.bias = _parameter(conv.bias, 0, kept)
    conv.out_channels = len(kept)


def _slice_inputs(layer: nn.Module, kept: Tensor) -> None:
    if isinstance(layer, CPConv2d):
        layer.select_inputs(kept)
        return
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer.weight = _parameter(layer.weight, 1, kept)
    if isinstance(layer, nn.Conv2d):
        layer.in_channels = len(kept)
    else:
        layer.in_features = len(kept)


def _slice_norm(norm: nn.Module, kept: Tensor) -> None:
    for name in ("weight", "bias"):
        value = getattr(norm, name)
        setattr(norm, name, _parameter(value, 0, kept) if isinstance(value, nn.Parameter) else value[kept])
    for name in ("running_mean", "running_var"):
        setattr(norm, name, getattr(norm, name)[kept])
    if isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
        norm.num_features = len(kept)


def _parameter(old: Tensor, dim: int, kept: Tensor) -> nn.Parameter:
    chosen = torch.index_select(old.detach(), dim, kept.to(old.device))
    return nn.Parameter(chosen, requires_grad=old.requires_grad)
