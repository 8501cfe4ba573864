"""Decomposes one convolution in every way at equal numbers of parameters, and measures error, cost and speed."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.analysis.complexity import count
from norton_det.analysis.latency import interleaved_latency
from norton_det.analysis.watch import watch_inputs
from norton_det.compression.alternatives import ALTERNATIVES, composed_weight
from norton_det.compression.building import build_network
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.channels import read_body
from norton_det.models.persistence import model_from_weights
from norton_det.models.structure import named_structure
from norton_det.models.weights import Weights
from norton_det.ops.factors import nmse

FILTER_WISE = "filter-wise CP"
DENSE = "dense"
METHODS = (DENSE, FILTER_WISE, *ALTERNATIVES)


@dataclass(frozen=True)
class Measurement:
    """Holds the measurements of one decomposition of one convolution.

    Attributes:
        method: one of METHODS.
        filter_rank: the rank of the filter-wise CP whose number of parameters is matched; 0 for dense.
        ranks: this decomposition's own, (R,) or (r1, r2); () for dense.
        sub_layers: convolutions that run one after the other.
        nmse: ||W - W'||^2 / ||W||^2 of the weight W and its approximation W'.
        parameters: of all sub-layers.
        macs: multiply-accumulates, of the filter-wise CP by the paper's formula (three sub-layers).
        macs_as_run: multiply-accumulates in the form that runs.
        latency_ms: median of one call.
    """

    method: str
    filter_rank: int
    ranks: tuple[int, ...]
    sub_layers: int
    nmse: float
    parameters: int
    macs: int
    macs_as_run: int
    latency_ms: float


@dataclass(frozen=True)
class _Candidate:
    method: str
    filter_rank: int
    ranks: tuple[int, ...]
    module: nn.Module
    nmse: float


def compare_decompositions(
    conv: nn.Conv2d,
    filter_ranks: Sequence[int],
    image: Tensor,
    *,
    runs: int,
    progress: Callable[[], object] = lambda: None,
) -> list[Measurement]:
    """Decompose `conv` by filter-wise CP at each of `filter_ranks`, and by the alternatives at as many parameters.

    Args:
        conv: a convolution (K, C, kh, kw) without bias.
        filter_ranks: ranks of the filter-wise CP; for each, every alternative takes its nearest rank.
        image: (N, C, H, W), on which MACs and latency are measured, in its memory format.
        runs: timed calls of each decomposition, in turn.
        progress: called after each decomposition.

    Returns:
        The dense convolution, then the methods rank by rank, `1 + len(filter_ranks) * len(METHODS[1:])` in all.
    """
    candidates = [_Candidate(DENSE, 0, (), conv.eval(), 0.0)]
    for candidate in _decompositions(conv, filter_ranks):
        candidates.append(candidate)
        progress()
    modules = [candidate.module.eval().to(memory_format=torch.channels_last) for candidate in candidates]
    with torch.inference_mode():
        latencies = interleaved_latency({str(i): partial(m, image) for i, m in enumerate(modules)}, runs=runs)
    measurements = []
    for candidate, latency in zip(candidates, latencies.values(), strict=True):
        counted = count(candidate.module, image)[""]
        measurements.append(
            Measurement(
                method=candidate.method,
                filter_rank=candidate.filter_rank,
                ranks=candidate.ranks,
                sub_layers=_sub_layers(candidate.module),
                nmse=candidate.nmse,
                parameters=counted.parameters,
                macs=counted.macs,
                macs_as_run=counted.macs_as_run,
                latency_ms=latency.median,
            )
        )
    return measurements


def resnet_convolutions(
    layers: Sequence[str], weights: Weights | None, input_size: int
) -> dict[str, tuple[nn.Conv2d, torch.Size]]:
    """Find 3x3 convolutions of a ResNet by name, in float32, and the shape (1, C, H, W) of what each reads.

    Args:
        layers: names as torchvision has them, such as `layer1.1.conv2`.
        weights: a classifier's or a detector's, which may lack those of other layers; None: a ResNet-50 with
            random ones.
        input_size: pixels a side of the network's square input.

    Raises:
        ValueError: for a layer that the network or `weights` lacks or holds as factors; it names those there are.
    """
    if weights is None:
        model: nn.Module = build_network(named_structure(None, "resnet50", 1000))
    else:
        model = model_from_weights(weights, strict=False)
    body = read_body(model)
    if unknown := [layer for layer in layers if layer not in body.spatial]:
        raise ValueError(f"no 3x3 convolution {', '.join(unknown)}; there are {', '.join(body.spatial) or 'none'}")
    if weights is not None:
        there = [layer for layer in body.spatial if f"{body.prefix}{layer}.weight" in weights.state]
        if missing := [layer for layer in layers if layer not in there]:
            raise ValueError(
                f"{weights.source}: no dense weights of {', '.join(missing)}; name other layers, "
                f"it has {', '.join(there) or 'none'}"
            )
    resnet: Any = model.get_submodule(body.prefix.removesuffix("."))
    shapes = _input_shapes(resnet, layers, input_size)
    return {layer: (resnet.get_submodule(layer), shapes[layer]) for layer in layers}


def _input_shapes(resnet: nn.Module, layers: Sequence[str], input_size: int) -> dict[str, torch.Size]:
    shadow = copy.deepcopy(resnet).to("meta").eval()
    shapes: dict[str, torch.Size] = {}
    modules = {layer: shadow.get_submodule(layer) for layer in layers}
    with watch_inputs(modules, lambda layer, x: shapes.update({layer: x.shape})):
        shadow(torch.empty(1, 3, input_size, input_size, device="meta"))
    return shapes


def _decompositions(conv: nn.Conv2d, filter_ranks: Sequence[int]) -> Iterator[_Candidate]:
    filters, channels, height, width = conv.weight.shape
    shape = (filters, channels, height, width)
    for filter_rank in filter_ranks:
        ours = CPConv2d.from_conv(conv, filter_rank)
        yield _Candidate(FILTER_WISE, filter_rank, (filter_rank,), ours, nmse(conv.weight, ours.weight))
        budget = sum(parameter.numel() for parameter in ours.parameters())
        for method, alternative in ALTERNATIVES.items():
            rank = alternative.nearest_rank(shape, budget)
            layers = alternative.decompose(conv, rank)
            error = nmse(conv.weight, composed_weight(layers))
            yield _Candidate(method, filter_rank, alternative.ranks(shape, rank), layers, error)


def _sub_layers(module: nn.Module) -> int:
    if isinstance(module, CPConv2d):
        return 2  # its depthwise form: the 1x1, and one (kh, kw) depthwise convolution
    return sum(isinstance(part, nn.Conv2d) for part in module.modules())
