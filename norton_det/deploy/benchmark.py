"""Measures detectors side by side: latency and memory in each treatment, and what makes up their time and size."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from norton_det.analysis.complexity import count_detector, total
from norton_det.analysis.latency import Latency, interleaved_latency
from norton_det.analysis.memory import peak_memory
from norton_det.analysis.parts import macs_by_part, seconds_by_part
from norton_det.deploy import counters
from norton_det.deploy.throughput import for_many
from norton_det.deploy.treatments import OPTIMISED, count_regions, treated
from norton_det.deploy.writing import write_model
from norton_det.in_flight import calls_at_once, in_order
from norton_det.models.parts import REGION_KINDS

PARTS_RUNS = 5
"""Runs over which the time by part is measured."""
ROUNDS = 2
"""Calls of each thread over which images a second are measured."""


@dataclass(frozen=True)
class Measured(Latency):
    """Holds a latency, and what else is measured.

    Attributes:
        images_a_second: with several calls at a time, where the treatment allows that.
        throughput_gain: the same as a multiple of the images a second of one call after the other.
        peak_memory: bytes that one call takes at its peak beside the model.
    """

    images_a_second: float
    throughput_gain: float
    peak_memory: int


def measure(models: Mapping[str, Any], treatment: str, images: Sequence[Tensor], runs: int) -> dict[str, Measured]:
    """Measure latency, images a second and memory of every model in one treatment; all are timed in turn."""
    prepared = {name: treated(model, treatment, images) for name, model in models.items()}
    many = {name: for_many(model) for name, model in prepared.items()}
    single = {name: partial(model, list(images)) for name, model in prepared.items()}
    several = {
        f"{name}, several at a time": partial(_call_several, model, images)
        for name, model in many.items()
        if calls_at_once(model) > 1
    }
    with torch.inference_mode():
        latencies = interleaved_latency(single | several, runs=runs)
        measured = {}
        for name, call in single.items():
            latency, together = latencies[name], latencies.get(f"{name}, several at a time")
            gain = ROUNDS * calls_at_once(many[name]) * latency.median / together.median if together else 1.0
            measured[name] = Measured(
                **asdict(latency),
                images_a_second=gain * 1000 * len(images) / latency.median,
                throughput_gain=gain,
                peak_memory=peak_memory(call, images[0].device),
            )
    return measured


def _call_several(model: Any, images: Sequence[Tensor]) -> None:
    at_once = calls_at_once(model)
    for _ in in_order(model, [list(images)] * ROUNDS * at_once, at_once):
        pass


def profile(model: Any, parts: Mapping[str, float], images: Sequence[Tensor], peak_macs: float) -> dict[str, Any]:
    """Measure what a detector consists of, in plain types.

    They are parameters, MACs, bytes, regions, time by part in optimised torch (`parts`, in seconds), and the share of
    the machine's rate (`peak_macs` a second) that the body, the neck and the head that looks at every level reach.
    """
    counts = count_detector(model, *model.transform(list(images))[0].tensors.shape[2:])
    whole = total(counts)
    static = [count for part, count in counts.items() if part.removesuffix("_head") not in REGION_KINDS]
    body = [seconds for part, seconds in parts.items() if part == "stem" or part.startswith("stage")]
    seconds = sum(body) + parts["neck"] + parts[_every_level(parts)]
    return {
        "parameters": whole.parameters,
        "macs": whole.macs,
        "bytes": sum(value.nbytes for value in model.state_dict().values()),
        "regions": count_regions(model, images),
        "milliseconds_by_part": {part: 1000 * taken for part, taken in parts.items()},
        "share_of_peak": len(images) * sum(count.macs_as_run for count in static) / seconds / peak_macs,
    }


def time_by_part(model: Any, treatment: str, images: Sequence[Tensor]) -> dict[str, float]:
    """Measure the seconds of each part of a detector in a treatment, by the runtime's own counters if it has any.

    They add up to the whole.
    """
    runtime, precision = OPTIMISED.get(treatment, ("torch", "float32"))
    if runtime == "torch":
        prepared = treated(model, treatment, images)
        return seconds_by_part(getattr(prepared, "detector", prepared), images, PARTS_RUNS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("model.xml" if runtime == "openvino" else "model.onnx")
        write_model(model, path, images, precision)
        return counters.seconds_by_part(path, precision, images, PARTS_RUNS)


def shares_of_arithmetic(
    model: Any, parts: Mapping[str, float], images: Sequence[Tensor], peak_macs: float
) -> dict[str, float]:
    """Compute the share of each part's seconds that its MACs would take at the machine's rate in float32, `peak_macs`
    a second, for the parts that have MACs."""
    macs = macs_by_part(model, *model.transform(list(images))[0].tensors.shape[2:])
    return {part: len(images) * macs[part] / peak_macs / parts[part] for part in macs if parts.get(part)}


def format_parts(times: Mapping[str, Mapping[str, float]], shares: Mapping[str, Mapping[str, float]]) -> str:
    """Format a table with a row for each part and a column for each way to run: milliseconds, and the share of
    arithmetic if it is known."""
    parts = list(dict.fromkeys(part for column in times.values() for part in column if part != "rest"))
    width = max(map(len, times)) + 2
    rows = [f"{'ms by part':18}" + "".join(f"{name:>{width}}" for name in times)]
    for part in [*parts, "rest"]:
        cells = []
        for name, column in times.items():
            share = shares.get(name, {}).get(part)
            told = f"{1000 * column[part]:.1f}" if part in column else "-"
            cells.append(told if share is None else f"{told} ({share:.0%})")
        rows.append(f"{part:18}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(rows)


def format_latencies(measured: Mapping[str, Mapping[str, Measured]]) -> str:
    """Format a table with a row for each treatment and model.

    Its columns are the milliseconds of a call, its speed relative to the first model in the same treatment and to the
    very first row, the images a second with several calls at a time, also as a multiple of those of one call after
    the other, and the memory that a call takes.
    """
    first = next(iter(next(iter(measured.values())).values())).median
    rows = [
        f"{'treatment':20}{'model':18}{'median ms':>11}{'p5':>9}{'p95':>9}{'speed':>8}{'in all':>8}"
        f"{'images/s':>10}{'gain':>8}{'peak MiB':>10}"
    ]
    for treatment, models in measured.items():
        dense = next(iter(models.values())).median
        for name, row in models.items():
            rows.append(
                f"{treatment:20}{name:18}{row.median:>11.1f}{row.p5:>9.1f}{row.p95:>9.1f}"
                f"{dense / row.median:>7.2f}x{first / row.median:>7.2f}x"
                f"{row.images_a_second:>10.2f}{row.throughput_gain:>7.2f}x{row.peak_memory / 2**20:>10.0f}"
            )
    return "\n".join(rows)


def format_profiles(profiles: Mapping[str, Mapping[str, Any]]) -> str:
    """Format lines on each model: size, work, regions, milliseconds by part."""
    rows = []
    for name, values in profiles.items():
        milliseconds = values["milliseconds_by_part"]
        parts = ", ".join(f"{part} {ms:.1f}" for part, ms in milliseconds.items())
        regions = ", ".join(f"{count} for the {kind} head" for kind, count in values["regions"].items())
        every_level = {"rpn head": "RPN", "heads": "heads"}[_every_level(milliseconds)]
        rows.append(
            f"{name}: {values['parameters']:,} parameters, {values['macs'] / 1e9:.1f} GMACs, "
            f"{values['bytes'] / 2**20:.0f} MiB{f'; regions: {regions}' if regions else ''}\n"
            f"  optimised torch, ms: {parts}; body, neck and {every_level} reach {values['share_of_peak']:.0%} of the"
            " peak rate"
        )
    return "\n".join(rows)


def _every_level(parts: Mapping[str, float]) -> str:
    """Return the name of the part that looks at every level: the RPN's head, or the only heads."""
    return "rpn head" if "rpn head" in parts else "heads"
