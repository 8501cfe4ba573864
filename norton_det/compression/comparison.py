"""One convolution decomposed in every way, at equal numbers of parameters: error, cost and speed."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from norton_det.analysis.complexity import count
from norton_det.analysis.latency import interleaved_latency
from norton_det.compression.alternatives import ALTERNATIVES, reconstruct
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.detectors import BODY
from norton_det.models.resnet import SPATIAL_LAYERS
from norton_det.models.weights import Weights
from norton_det.ops.cp import nmse

FILTER_WISE = "filter-wise CP"
DENSE = "dense"
METHODS = (DENSE, FILTER_WISE, *ALTERNATIVES)


@dataclass(frozen=True)
class Measurement:
    """One decomposition of one convolution.

    Attributes:
        method: one of METHODS.
        filter_rank: the rank of the filter-wise CP whose number of parameters is matched; 0 for dense.
        ranks: this decomposition's own, (R,) or (r1, r2); () for dense.
        sub_layers: convolutions that run one after the other.
        nmse: ||W - What||^2 / ||W||^2.
        parameters: of all sub-layers.
        macs: multiply-accumulates, of the filter-wise CP by the paper's formula (three sub-layers).
        macs_as_run: in the form that runs.
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


def compare(
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
        image: (N, C, H, W), what MACs and latency are measured on, in its memory format.
        runs: timed calls of each, in turn.
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
    layers: Sequence[str], weights: Weights | None, generator: torch.Generator
) -> dict[str, nn.Conv2d]:
    """Return 3x3 convolutions of a ResNet-50 by name, in float32.

    Args:
        layers: names from SPATIAL_LAYERS.
        weights: dense, a ResNet-50's or a detector's, of other layers as incomplete as may be; or None: random ones
            of variance 2 / (K * kh * kw).
        generator: draws the random ones.

    Raises:
        ValueError: naming the layers that there are, on one that the network or `weights` lacks.
    """
    unknown = [layer for layer in layers if layer not in SPATIAL_LAYERS]
    if unknown:
        raise ValueError(f"no 3x3 convolution {', '.join(unknown)}; there are {', '.join(SPATIAL_LAYERS)}")
    if weights is None:
        return {layer: _convolution(layer, _random_weight(layer, generator)) for layer in layers}
    prefix = BODY if weights.is_detector else ""
    found = {layer: weights.state.get(f"{prefix}{layer}.weight") for layer in SPATIAL_LAYERS}
    missing = [layer for layer in layers if found[layer] is None]
    if missing:
        there = [layer for layer, weight in found.items() if weight is not None]
        raise ValueError(
            f"{weights.source}: no dense weights of {', '.join(missing)}; name other layers, "
            f"it has {', '.join(there) or 'none'}"
        )
    return {layer: _convolution(layer, weight) for layer in layers if (weight := found[layer]) is not None}


def input_side(layer: str, input_size: int) -> int:
    """Return the side of the square map that enters a 3x3 convolution of a ResNet-50 on `input_size` pixels."""
    return math.ceil(input_size * _stride(layer) / (2 << _stage(layer)))  # halved by stem, pooling, stages 2 to 4


def _stage(layer: str) -> int:
    return int(layer.split(".")[0].removeprefix("layer"))


def _stride(layer: str) -> int:
    """The stride of a 3x3 convolution: 2 in the first block of stages 2 to 4."""
    return 2 if _stage(layer) > 1 and layer.split(".")[1] == "0" else 1


def _random_weight(layer: str, generator: torch.Generator) -> Tensor:
    width = 32 << _stage(layer)
    return torch.randn(width, width, 3, 3, generator=generator) * math.sqrt(2 / (width * 9))


def _convolution(layer: str, weight: Tensor) -> nn.Conv2d:
    filters, channels, height, width = weight.shape
    conv = nn.Conv2d(channels, filters, (height, width), stride=_stride(layer), padding=1, bias=False)
    conv.weight = nn.Parameter(weight.float())
    return conv


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
            error = nmse(conv.weight, reconstruct(layers))
            yield _Candidate(method, filter_rank, alternative.ranks(shape, rank), layers, error)


def _sub_layers(module: nn.Module) -> int:
    if isinstance(module, CPConv2d):
        return 2  # its depthwise form: the 1x1, and one (kh, kw) depthwise convolution
    return sum(isinstance(part, nn.Conv2d) for part in module.modules())
