"""Records networks as CUDA graphs and replays them, which saves the time of launching kernel by kernel."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from norton_det.models.parts import dense_head
from norton_det.models.precision import map_tensors, wrap_forward

MOST = 16
"""Most shapes that are recorded of a network, since each keeps its outputs; further shapes run unrecorded."""


class Recording(NamedTuple):
    """Holds a graph, the tensors that it reads, and those that it writes, which the next replay overwrites."""

    graph: torch.cuda.CUDAGraph
    inputs: Any
    outputs: Any


class Replayed:
    """Calls a function of tensors on one device: directly the first time that shapes come, then as a recording.

    `pool` is memory that recordings share, since no two run at the same time.
    """

    def __init__(self, function: Any, pool: Any) -> None:
        self._function, self._pool = function, pool
        self._met: set[Any] = set()
        self._recordings: dict[Any, Recording] = {}

    def __call__(self, inputs: Any) -> Any:
        """Return the function's outputs, which are valid until the next call."""
        given = _tensors(inputs)
        shapes = tuple(x.shape for x in given)
        if shapes not in self._recordings:
            if shapes not in self._met or len(self._recordings) >= MOST:
                self._met.add(shapes)
                return self._function(inputs)
            with torch.cuda.device(given[0].device):
                self._recordings[shapes] = self._record(inputs)
        recording = self._recordings[shapes]
        for place, x in zip(_tensors(recording.inputs), given, strict=True):
            place.copy_(x)
        recording.graph.replay()
        return recording.outputs

    @torch.inference_mode(False)
    @torch.no_grad()
    def _record(self, inputs: Any) -> Recording:
        """Record the function outside inference mode: tensors made in that mode could not be written outside it."""
        places = map_tensors(Tensor.clone, inputs)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries prepare themselves in a first call, which may not be recorded
            self._function(places)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = self._function(places)
        return Recording(graph, places, outputs)


def replay_networks(detector: nn.Module) -> None:
    """Have a detector's body, neck and dense head replayed on its GPU, as their work depends on shapes alone."""
    pool = torch.cuda.graph_pool_handle()
    backbone: Any = detector.backbone
    for network in (backbone.body, backbone.fpn, dense_head(detector)):
        wrap_forward(network, Replayed, pool)


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(found.append, value)
    return found
