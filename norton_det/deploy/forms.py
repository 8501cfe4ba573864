"""Chooses the fastest form of each CP convolution, measured on this machine for the shapes of its inputs."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from norton_det.analysis.latency import median_seconds
from norton_det.analysis.watch import watch_inputs
from norton_det.layers.cp_conv import FORMS, CPConv2d, Form, in_form

Shape = tuple[int, ...]
Timer = Callable[["CPShape", Form, Shape], float]
"""Returns the seconds that a layer takes in a form for an input of a shape."""


CPShape = tuple[int, int, tuple[int, int], int, tuple[int, int], tuple[int, int], tuple[int, int]]
"""What a layer's time depends on: in and out channels, kernel, rank, stride, padding, dilation."""


@torch.no_grad()
def choose_forms(detector: nn.Module, image: Tensor, timer: Timer) -> None:
    """Replace every CP convolution by its dense or its depthwise form, whichever `timer` finds faster.

    A layer that runs on several sizes (the RPN and towers run on each level) takes the form with the smallest sum.
    One that the image does not reach, as a mask head where nothing is found, takes its depthwise form. `image` is a
    float RGB image (3, H, W) of the size to be fast at.
    """
    for name, shapes in _input_shapes(detector, image).items():
        layer = detector.get_submodule(name)
        assert isinstance(layer, CPConv2d)
        seconds = {form: sum(timer(cp_shape(layer), form, shape) for shape in shapes) for form in FORMS}
        detector.set_submodule(name, in_form(layer, min(FORMS, key=seconds.__getitem__)))


def _input_shapes(detector: nn.Module, image: Tensor) -> dict[str, list[Shape]]:
    """Return the shapes of what each CP convolution reads of an image, by the layer's name."""
    layers = {name: layer for name, layer in detector.named_modules() if isinstance(layer, CPConv2d)}
    met: dict[str, list[Shape]] = {name: [] for name in layers}
    with watch_inputs(layers, lambda name, x: met[name].append(tuple(x.shape))):
        detector([image])
    return met


def cp_shape(layer: CPConv2d) -> CPShape:
    """Return the shape of a layer, from which `build_layer` rebuilds it with random factors."""
    return (
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.rank,
        layer.stride, layer.padding, layer.dilation,
    )  # fmt: skip


def build_layer(shape: CPShape, form: Form) -> nn.Module:
    """Build a layer for timing, in a form as it is deployed."""
    inputs, outputs, kernel, rank, stride, padding, dilation = shape
    return in_form(CPConv2d(inputs, outputs, kernel, rank, stride, padding, dilation), form)


def torch_timer(device: torch.device, dtype: torch.dtype) -> Timer:
    """Return a timer of layers in torch, channels_last; it times each shape once for a device, dtype and number of
    threads."""

    def seconds(shape: CPShape, form: Form, inputs: Shape) -> float:
        return _torch_seconds(shape, form, inputs, str(device), dtype, torch.get_num_threads())

    return seconds


@cache
def _torch_seconds(shape: CPShape, form: Form, inputs: Shape, device: str, dtype: torch.dtype, threads: int) -> float:
    layer = build_layer(shape, form).to(device, dtype).to(memory_format=torch.channels_last)
    x = torch.rand(inputs, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    return median_seconds(lambda: layer(x))
