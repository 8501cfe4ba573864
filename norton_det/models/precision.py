"""Lowers the precision where it is safe: in a detector's networks, and nowhere else."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.models.parts import networks

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def fastest_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device computes in it, else float32."""
    native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


@contextmanager
def networks_in(detector: nn.Module, precision: torch.dtype) -> Iterator[None]:
    """Run the detector's networks under autocast inside the `with` block; they hand on float32.

    The networks are the body with its pyramid and the heads: all convolutions and linear layers. The rest stays in
    float32: anchors, box coding, NMS, losses, mask pasting. With torch.float32 nothing changes.
    """
    changed = networks(detector) if precision != torch.float32 else []
    for network in changed:
        wrap_forward(network, _autocast, precision)
    try:
        yield
    finally:
        for network in changed:
            del network.forward


def lower_networks(detector: nn.Module, precision: torch.dtype) -> None:
    """Cast the detector's networks for good, in place, for inference; they still take and hand on float32.

    Under autocast their weights would be cast anew in every call. With torch.float32 nothing changes.
    """
    for network in networks(detector) if precision != torch.float32 else []:
        network.to(precision)
        wrap_forward(network, _lowered, precision)


def wrap_forward(module: nn.Module, wrapper: Callable[..., Any], *arguments: Any) -> None:
    """Make a module's calls go through `wrapper(forward, *arguments)`, until `del module.forward`."""
    setattr(module, "forward", wrapper(module.forward, *arguments))  # noqa: B010, over the class's method


def _autocast(forward: Any, precision: torch.dtype) -> Any:
    @wraps(forward)
    def lowered(inputs: Any) -> Any:
        with torch.autocast(_device_type(inputs), precision):
            return map_tensors(Tensor.float, forward(inputs))

    return lowered


def _lowered(forward: Any, precision: torch.dtype) -> Any:
    @wraps(forward)
    def lowered(inputs: Any) -> Any:
        return map_tensors(Tensor.float, forward(map_tensors(lambda x: x.to(precision), inputs)))

    return lowered


def _device_type(inputs: Tensor | list[Tensor]) -> str:
    return (inputs if isinstance(inputs, Tensor) else inputs[0]).device.type


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Replace tensors by a function's results, also in lists, tuples and mappings."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return type(value)((key, map_tensors(function, item)) for key, item in value.items())  # type: ignore[call-arg]
    return type(value)(map_tensors(function, item) for item in value)
