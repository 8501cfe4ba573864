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
from norton_det.analysis.roofline import Roofline, measure_roofline
from norton_det.deploy import counters
from norton_det.deploy.runtimes import Precision, load_exported
from norton_det.deploy.throughput import for_many
from norton_det.deploy.treatments import FLOAT32, OPTIMISED, count_regions, treated
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


@dataclass(frozen=True)
class SideBySide:
    """Holds what was measured of models, by treatment and model, or by model.

    Attributes:
        latencies: by treatment and model.
        seconds_by_part: by treatment, model and part.
        share_of_arithmetic: `shares_of_arithmetic`, likewise, for treatments in float32.
        profiles: what `profile` says, by model.
        roofline: the rates of the machine.
    """

    latencies: dict[str, dict[str, Measured]]
    seconds_by_part: dict[str, dict[str, dict[str, float]]]
    share_of_arithmetic: dict[str, dict[str, dict[str, float]]]
    profiles: dict[str, dict[str, Any]]
    roofline: Roofline

    def to_dict(self, model: str) -> dict[str, Any]:
        """Return what is known of a model, in plain types: its profile, and the latencies in the first treatment and
        in all of them."""
        treatments = {
            name: asdict(rows[model])
            | {"seconds_by_part": self.seconds_by_part[name][model]}
            | {"share_of_arithmetic": self.share_of_arithmetic.get(name, {}).get(model, {})}
            for name, rows in self.latencies.items()
        }
        first = next(iter(self.latencies.values()))[model]
        return {**self.profiles[model], **asdict(first), "treatments": treatments}


def measure_side_by_side(
    models: Mapping[str, Any], treatments: Sequence[str], images: Sequence[Tensor], runs: int
) -> SideBySide:
    """Measure models on a batch of images, in all treatments."""
    latencies, parts = {}, {}
    for treatment in treatments:
        with tempfile.TemporaryDirectory() as folder:
            ready = {
                name: make_ready(model, treatment, images, Path(folder) / str(number))
                for number, (name, model) in enumerate(models.items())
            }
            latencies[treatment] = measure({name: each.detector for name, each in ready.items()}, images, runs)
            parts[treatment] = {name: time_by_part(each, images) for name, each in ready.items()}
    in_torch = parts.get("torch") or {
        name: time_by_part(Ready(treated(model, "torch", images)), images) for name, model in models.items()
    }
    roofline = measure_roofline(images[0].device)
    return SideBySide(
        latencies=latencies,
        seconds_by_part=parts,
        share_of_arithmetic={
            treatment: {
                name: shares_of_arithmetic(model, rows[name], images, roofline.macs) for name, model in models.items()
            }
            for treatment, rows in parts.items()
            if treatment in FLOAT32
        },
        profiles={name: profile(model, in_torch[name], images, roofline.macs) for name, model in models.items()},
        roofline=roofline,
    )


@dataclass(frozen=True)
class Ready:
    """Holds a detector as a treatment runs it, and if it was loaded from an exported file, that and its precision."""

    detector: Any
    file: Path | None = None
    precision: Precision = "float32"


def make_ready(model: Any, treatment: str, images: Sequence[Tensor], folder: Path) -> Ready:
    """Treat a model; for another runtime than torch it is written to a folder and loaded from there."""
    runtime, precision = OPTIMISED.get(treatment, ("torch", "float32"))
    if runtime == "torch":
        return Ready(treated(model, treatment, images))
    path = folder / ("model.xml" if runtime == "openvino" else "model.onnx")
    folder.mkdir()
    write_model(model, path, images, precision)
    return Ready(load_exported(path, precision), path, precision)


def measure(detectors: Mapping[str, Any], images: Sequence[Tensor], runs: int) -> dict[str, Measured]:
    """Measure latency, images a second and memory of detectors that are ready to run; all are timed in turn."""
    many = {name: for_many(detector) for name, detector in detectors.items()}
    single = {name: partial(detector, list(images)) for name, detector in detectors.items()}
    several = {
        f"{name}, several at a time": partial(_call_several, detector, images)
        for name, detector in many.items()
        if calls_at_once(detector) > 1
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


def _call_several(detector: Any, images: Sequence[Tensor]) -> None:
    at_once = calls_at_once(detector)
    for _ in in_order(detector, [list(images)] * ROUNDS * at_once, at_once):
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
    seconds = sum(body) + parts["neck"] + parts[every_level(parts)]
    return {
        "parameters": whole.parameters,
        "macs": whole.macs,
        "bytes": sum(value.nbytes for value in model.state_dict().values()),
        "regions": count_regions(model, images),
        "milliseconds_by_part": {part: 1000 * taken for part, taken in parts.items()},
        "share_of_peak": len(images) * sum(count.macs_as_run for count in static) / seconds / peak_macs,
    }


def time_by_part(ready: Ready, images: Sequence[Tensor]) -> dict[str, float]:
    """Measure the seconds of each part of a detector, by the runtime's own counters if it has any.

    They add up to the whole.
    """
    if ready.file is None:
        return seconds_by_part(getattr(ready.detector, "detector", ready.detector), images, PARTS_RUNS)
    return counters.seconds_by_part(ready.file, ready.precision, images, PARTS_RUNS)


def shares_of_arithmetic(
    model: Any, parts: Mapping[str, float], images: Sequence[Tensor], peak_macs: float
) -> dict[str, float]:
    """Compute the share of each part's seconds that its MACs would take at the machine's rate in float32, `peak_macs`
    a second, for the parts that have MACs."""
    macs = macs_by_part(model, *model.transform(list(images))[0].tensors.shape[2:])
    return {part: len(images) * macs[part] / peak_macs / parts[part] for part in macs if parts.get(part)}


def every_level(parts: Mapping[str, float]) -> str:
    """Return the name of the part that looks at every level: the RPN's head, or the only heads."""
    return "rpn head" if "rpn head" in parts else "heads"
