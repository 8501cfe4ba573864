"""Prices a layer of any width and rank: MACs and parameters as the project counts them, or measured time."""

import copy
import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from norton_det.analysis.complexity import box_regions, count
from norton_det.analysis.latency import median_seconds
from norton_det.analysis.watch import watch_inputs
from norton_det.layers.cp_conv import FORMS, CPConv2d, in_form
from norton_det.models.device import device_of
from norton_det.models.parts import dense_head, regions

GRID = 4
"""How many steps a layer's widths are divided into: times are measured at multiples of a quarter and interpolated."""


@dataclass(frozen=True)
class Site:
    """Describes a dense, ungrouped layer in its network: its widths, and the sizes (N, H, W) of the maps that it
    reads.

    A linear layer counts as a 1x1 convolution of a map of (1, rows, 1). `norm` says that BatchNorm stands behind.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    bias: bool
    norm: bool
    sizes: tuple[tuple[int, int, int], ...]

    def layer(self, inputs: int, outputs: int, rank: int | None) -> nn.Conv2d | CPConv2d:
        """Build the layer at other widths, dense or of a CP rank, with random weights."""
        geometry = (self.stride, self.padding, self.dilation)
        if rank is None:
            return nn.Conv2d(inputs, outputs, self.kernel, *geometry, bias=self.bias)
        return CPConv2d(inputs, outputs, self.kernel, rank, *geometry, self.bias)


Price = Callable[[Site, int, int, int | None], float]
"""A function from a site and its layer's input channels, output channels and CP rank (None: dense) to its cost."""


class StaticPart(nn.Module):
    """Runs what in a network does not depend on what is detected: a body, or all convolutions and linear layers of a
    detector, its heads on as many regions as `analysis.complexity` counts them with."""

    def __init__(self, network: nn.Module, prefix: str, whole_detector: bool) -> None:
        super().__init__()
        self.network = network
        self.whole_detector = whole_detector
        self._body = prefix.removesuffix(".")

    def forward(self, image: Tensor) -> None:
        """Run on an image (1, 3, H, W)."""
        network: Any = self.network
        if not self.whole_detector:
            network.get_submodule(self._body)(image)
            return
        levels = list(network.backbone(image).values())
        dense_head(network)(levels)
        for kind, region in regions(network).items():
            number = box_regions(network) if kind == "box" else 1
            region.head(image.new_zeros(number, network.backbone.out_channels, *region.pooler.output_size))


@torch.no_grad()
def find_sites(part: StaticPart, normed: Collection[str], size: tuple[int, int]) -> dict[str, Site]:
    """Return the sites of the layers that run on an image of `size` (H, W), by their names in the network.

    `part` lies on the meta device; `normed` names the layers with BatchNorm behind. Grouped convolutions, whose
    channels are fixed, are left out.
    """
    kinds = (nn.Conv2d, nn.Linear)
    layers = {name: layer for name, layer in part.network.named_modules() if isinstance(layer, kinds)}
    read: dict[str, list[Tensor]] = {}
    with watch_inputs(layers, lambda name, x: read.setdefault(name, []).append(x)):
        part(torch.empty(1, 3, *size, device="meta"))
    ungrouped = [name for name in read if getattr(layers[name], "groups", 1) == 1]
    return {name: _site(layers[name], read[name], name in normed) for name in ungrouped}


def _site(layer: Any, read: list[Tensor], norm: bool) -> Site:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        rows = tuple((1, len(x), 1) for x in read)
        return Site(layer.in_features, layer.out_features, (1, 1), (1, 1), (0, 0), (1, 1), bias, norm, rows)
    sizes = tuple((len(x), x.shape[2], x.shape[3]) for x in read)
    kernel, stride, padding, dilation = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    return Site(layer.in_channels, layer.out_channels, kernel, stride, padding, dilation, bias, norm, sizes)


def counted(kind: Literal["macs", "parameters"]) -> Price:
    """Return the price as `analysis.complexity` counts it: K (a C + b), read off two layers of one filter."""

    def price(site: Site, inputs: int, outputs: int, rank: int | None) -> float:
        one, two = (_counts(site, channels, rank)[kind == "parameters"] for channels in (1, 2))
        return outputs * ((two - one) * inputs + 2 * one - two)

    return price


@cache
def _counts(site: Site, inputs: int, rank: int | None) -> tuple[int, int]:
    """Return the MACs over all sizes, and the parameters, of a layer of one filter."""
    layers: list[nn.Module] = [site.layer(inputs, 1, rank)]
    if site.norm:
        layers.append(nn.BatchNorm2d(1))
    counts = [count(nn.Sequential(*layers), torch.zeros(number, inputs, *size))[""] for number, *size in site.sizes]
    return sum(c.macs for c in counts), counts[0].parameters


def timed(device: torch.device) -> Price:
    """Return the price in milliseconds on this device: one image in float32, ReLU included, in the faster form.

    Times are measured where both widths are multiples of a quarter, once a process; between they are bilinear.
    """

    def price(site: Site, inputs: int, outputs: int, rank: int | None) -> float:
        measured = partial(_grid_milliseconds, site, rank=rank, device=device, threads=torch.get_num_threads())
        places = _neighbours(inputs, site.inputs), _neighbours(outputs, site.outputs)
        return sum(share * other * measured(low, high) for (low, share), (high, other) in itertools.product(*places))

    return price


def _neighbours(width: int, full: int) -> list[tuple[int, float]]:
    """Return the grid points about a width, from 1 on, and their weights; a width below the first is extrapolated."""
    place = GRID * width / full
    low = min(max(int(place), 1), GRID - 1)
    return [(point, weight) for point, weight in ((low, low + 1 - place), (low + 1, place - low)) if weight]


@cache
def _grid_milliseconds(
    site: Site, inputs: int, outputs: int, *, rank: int | None, device: torch.device, threads: int
) -> float:
    inputs, outputs = max(1, site.inputs * inputs // GRID), max(1, site.outputs * outputs // GRID)
    images = [torch.zeros(number, inputs, *size) for number, *size in site.sizes]
    return fastest(site.layer(inputs, outputs, rank).to(device), images)[1]


@torch.no_grad()
def fastest(layer: nn.Conv2d | CPConv2d, images: list[Tensor]) -> tuple[nn.Module, float]:
    """Return the form of a layer that takes the fewest milliseconds on all `images`, ReLU included, and these."""
    candidates: list[nn.Module] = [layer]
    if isinstance(layer, CPConv2d):
        candidates = [in_form(layer, form) for form in FORMS]
    device = device_of(layer)
    inputs = [image.to(device, memory_format=torch.channels_last) for image in images]
    timings = []
    for candidate in candidates:
        run = nn.Sequential(candidate, nn.ReLU(inplace=True)).to(memory_format=torch.channels_last)
        timings.append(1000 * median_seconds(lambda run=run: [run(x) for x in inputs]))  # type: ignore[misc]
    best = timings.index(min(timings))
    return candidates[best], timings[best]


@torch.no_grad()
def static_milliseconds(part: StaticPart, size: tuple[int, int], device: torch.device) -> float:
    """Time one image of `size` (H, W) through a network, BatchNorm folded away, each CP layer in its faster form."""
    part = copy.deepcopy(part).to(device).to(memory_format=torch.channels_last).eval()
    for name, module in list(part.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            part.set_submodule(name, nn.Identity())
    image = torch.zeros(1, 3, *size, device=device).to(memory_format=torch.channels_last)
    layers = {name: module for name, module in part.named_modules() if isinstance(module, CPConv2d)}
    read: dict[str, list[Tensor]] = {name: [] for name in layers}
    with watch_inputs(layers, lambda name, x: read[name].append(x)):
        part(image)
    for name, inputs in read.items():
        part.set_submodule(name, fastest(layers[name], inputs)[0])
    return 1000 * median_seconds(lambda: part(image))
