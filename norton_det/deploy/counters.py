"""Measures where an exported file spends its time, by the counters of its runtime."""

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from norton_det.analysis.latency import median_seconds
from norton_det.deploy.int8 import INT8_PARTS
from norton_det.deploy.runtimes import Array, Precision, compile_options, load_exported, openvino_core
from norton_det.models.parts import REGION_KINDS

PLACES: dict[str, tuple[str, ...]] = {
    "resize": ("/transform/",),
    **{part: places for part, places in INT8_PARTS.items() if part.startswith("stage")},
    "stem": ("/backbone/body/",),
    "neck": ("/backbone/",),
    "rpn head": INT8_PARTS["rpn"],
    "proposals": ("/rpn/",),
    "roi align": tuple(f"/roi_heads/{kind}_roi_pool/" for kind in REGION_KINDS),
    "heads": (*INT8_PARTS["heads"], *(place for kind in REGION_KINDS for place in INT8_PARTS[f"{kind} head"])),
    "post-processing": ("/roi_heads/", "/places/"),
}
"""How the names of each part's nodes begin; a node belongs to the first part that fits."""


def seconds_by_part(path: Path, precision: Precision, images: Sequence[Tensor], runs: int) -> dict[str, float]:
    """Measure the median seconds of each part of an exported detector on a batch, and of the rest.

    Together they add up to a call without counters. The parts are those of `analysis.parts.seconds_by_part`. Outside
    the runtime, images are resized, detections are scaled back and masks are pasted; the latter two count as
    post-processing. The rest is what the runtime does outside nodes or in nodes without a known name; it is negative
    if counting slows the runtime down.
    """
    detector = load_exported(path, precision)
    inputs = detector.inputs(images)
    outputs = detector.session(*inputs)
    nodes = (_openvino if path.suffix == ".xml" else _onnxruntime)(path, precision, inputs, runs)
    taken = by_part(nodes)
    with torch.inference_mode():
        taken["resize"] += median_seconds(lambda: detector.inputs(images), runs)
        taken["post-processing"] += median_seconds(lambda: detector.detections(outputs, inputs[1], images), runs)
        whole = median_seconds(lambda: detector(images), runs)
    return taken | {"rest": whole - sum(taken.values())}


def by_part(nodes: Mapping[str, float]) -> dict[str, float]:
    """Add up the seconds of nodes by part, for the parts of PLACES that have any."""
    taken = dict.fromkeys(PLACES, 0.0)
    for name, seconds in nodes.items():
        for part, places in PLACES.items():
            if name.startswith(places):
                taken[part] += seconds
                break
    always = ("resize", "post-processing")
    return {part: seconds for part, seconds in taken.items() if seconds or part in always}


def _openvino(path: Path, precision: Precision, inputs: tuple[Array, Array], runs: int) -> dict[str, float]:
    options = compile_options(precision) | {"PERF_COUNT": "YES"}
    request = openvino_core().compile_model(str(path), "CPU", options).create_infer_request()
    named = dict(zip(("images", "sizes"), inputs, strict=True))
    seen: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs + 1):
        request.infer(named)
        for node in request.get_profiling_info():
            seen[node.node_name].append(node.real_time.total_seconds())
    return _medians(seen)


def _onnxruntime(path: Path, _: Precision, inputs: tuple[Array, Array], runs: int) -> dict[str, float]:
    import onnxruntime

    named = dict(zip(("images", "sizes"), inputs, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
        for _run in range(runs + 1):
            session.run(None, named)
        events = json.loads(Path(session.end_profiling()).read_text())
    seen: dict[str, list[float]] = defaultdict(list)
    for name, seconds in _kernels(events):
        seen[name].append(seconds)
    return _medians(seen)


def _kernels(events: Sequence[Mapping[str, object]]) -> Iterator[tuple[str, float]]:
    """Yield each node that ran, and its seconds, from onnxruntime's profile."""
    ending = "_kernel_time"
    for event in events:
        name, microseconds = str(event["name"]), event["dur"]
        if event["cat"] == "Node" and name.endswith(ending) and isinstance(microseconds, int):
            yield name.removesuffix(ending), microseconds / 1e6


def _medians(seen: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median seconds of each node, without the first run."""
    return {name: statistics.median(seconds[1:] or seconds) for name, seconds in seen.items()}
