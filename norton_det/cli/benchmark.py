"""Measure the latency of a configuration's detector, dense and compressed in turn, each in every treatment."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from norton_det.analysis.complexity import count_detector, total
from norton_det.analysis.latency import Latency, detector_latency
from norton_det.analysis.machine import describe_machine
from norton_det.analysis.memory import peak_memory
from norton_det.analysis.parts import seconds_by_part
from norton_det.analysis.roofline import measure_roofline
from norton_det.builders.detector import random_pair
from norton_det.builders.resolve import resolve_device
from norton_det.cli.options import require_at_least
from norton_det.config import Config, load_config
from norton_det.data.images import ImageFiles
from norton_det.data.shapes import draw_scene
from norton_det.deploy.treatments import TREATMENTS, count_regions, fix_workload, treated, usable_treatments
from norton_det.files import write_json
from norton_det.models.weights import detector_from_weights, read_weights, weights_name
from norton_det.visualization.plots import save_latency_plot

PARTS_RUNS = 5
"""Runs from which the time by part is taken."""


@dataclass(frozen=True)
class Measured(Latency):
    """Latency, and the bytes that a call takes at its peak beside the model."""

    peak_memory: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the configuration's)")
    models = parser.add_mutually_exclusive_group()
    models.add_argument(
        "--plans", nargs="+", metavar="PLAN", help="compressed models to measure (default: the configuration's plan)"
    )
    models.add_argument(
        "--weights", nargs="+", type=Path, metavar="W", help="measure these detectors, DIR/model_final.pth, instead"
    )
    parser.add_argument(
        "--treatments", nargs="+", choices=TREATMENTS, metavar="NAME",
        help=f"how the models are run (default: all that can be used here), of: {', '.join(TREATMENTS)}",
    )  # fmt: skip
    parser.add_argument("--image", type=Path, help="the image to detect on (default: a drawn scene)")
    parser.add_argument(
        "--input-size", nargs=2, type=int, default=[480, 640], metavar=("H", "W"), help="pixels of the drawn scene"
    )
    parser.add_argument("--batch", type=int, default=1, help="images a call, the same one repeated")
    parser.add_argument("--detections", type=int, default=20, help="detections an image that go to the other heads")
    parser.add_argument("--runs", type=int, default=10, help="counted calls of each model and treatment")
    parser.add_argument("--json", type=Path, help="write the numbers there, and a plot beside them (.png)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the configuration")


def run(args: argparse.Namespace) -> None:
    """Print the tables, write the JSON and the plot."""
    require_at_least(args, batch=1, detections=1, runs=1)
    device_override = [f"device={args.device}"] if args.device else []
    config = load_config(args.config, [*args.overrides, *device_override])
    device = resolve_device(config)
    image = ImageFiles([args.image])[0] if args.image else drawn(*args.input_size)
    images = [image.to(device)] * args.batch
    models = {}
    built = load_models(args.weights) if args.weights else build_models(config, args.plans)
    for name, detector in built.items():
        fix_workload(detector, args.detections)
        models[name] = detector.to(device).eval()
    treatments = args.treatments or usable_treatments(device)
    measured = {treatment: measure(models, treatment, images, args.runs) for treatment in treatments}
    roofline = measure_roofline(device)
    details = {name: describe(model, images, roofline.macs) for name, model in models.items()}
    print(format_latencies(measured))
    print(format_details(details))
    print(f"machine: {describe_machine(device)}; product of matrices {2 * roofline.macs / 1e9:.0f} GFLOP/s, "
          f"copy {roofline.bytes / 1e9:.1f} GB/s")  # fmt: skip
    if args.json:
        write_json(
            args.json,
            {
                "machine": describe_machine(device),
                "roofline": asdict(roofline),
                "image": [*image.shape[1:]],
                "batch": args.batch,
                "models": {
                    name: {
                        "trained": bool(args.weights),
                        **details[name],
                        **asdict(measured[treatments[0]][name]),
                        "treatments": {treatment: asdict(rows[name]) for treatment, rows in measured.items()},
                    }
                    for name in models
                },
            },
        )
        save_latency_plot(args.json.with_suffix(".png"), measured)


def build_models(config: Config, plans: list[str] | None) -> dict[str, Any]:
    """Detectors with random weights by name: the dense one first."""
    if not plans:
        return {name: built.model for name, built in random_pair(config).items()}
    models: dict[str, Any] = {}
    for plan in plans:
        changed = config.model_copy(update={"model": config.model.model_copy(update={"plan": plan})})
        pair = random_pair(changed)
        models.setdefault("dense", pair["dense"].model)
        models[plan] = pair["compressed"].model
    return models


def load_models(weights: Sequence[Path]) -> dict[str, Any]:
    """Trained detectors by name. Raises ValueError where two have the same, or a file holds none."""
    names = [weights_name(path) for path in weights]
    if len(set(names)) < len(names):
        raise ValueError(f"--weights: two detectors have the same name, got {', '.join(names)}")
    return {name: detector_from_weights(read_weights(path)) for name, path in zip(names, weights, strict=True)}


def measure(models: dict[str, Any], treatment: str, images: list[Tensor], runs: int) -> dict[str, Measured]:
    """What a call of every model takes in one treatment; timed in turn."""
    prepared = {name: treated(model, treatment, images) for name, model in models.items()}
    latencies = detector_latency(prepared, images, runs=runs)
    with torch.inference_mode():
        return {
            name: Measured(
                **asdict(latencies[name]), peak_memory=peak_memory(partial(model, images), images[0].device)
            )
            for name, model in prepared.items()
        }


def describe(model: Any, images: list[Tensor], peak_macs: float) -> dict[str, Any]:
    """Parameters, MACs, size, time by part in optimised torch, regions, and the share of the machine's rate that
    body, neck and RPN reach."""
    resized = model.transform(images)[0].tensors
    counts = count_detector(model.cpu(), *resized.shape[2:])
    model.to(images[0].device)
    whole = total(counts)
    parts = seconds_by_part(treated(model, "torch", images).detector, images, PARTS_RUNS)
    static = sum(counts[part].macs_as_run for part in ("body", "neck", "rpn")) * len(images)
    return {
        "parameters": whole.parameters,
        "macs": whole.macs,
        "bytes": sum(value.nbytes for value in model.state_dict().values()),
        "regions": count_regions(model, images),
        "milliseconds_by_part": {part: 1000 * seconds for part, seconds in parts.items()},
        "share_of_peak": static / (parts["body"] + parts["neck"] + parts["rpn head"]) / peak_macs,
    }


def drawn(height: int, width: int) -> Tensor:
    """A drawn scene of the wanted size, float32 RGB (3, height, width) in 0 to 1."""
    scene = torch.from_numpy(draw_scene(np.random.default_rng(0)).image).permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.interpolate(scene, (height, width), mode="bilinear", antialias=True)[0]


def format_latencies(measured: dict[str, dict[str, Measured]]) -> str:
    """A row a treatment and model: milliseconds, frames a second, the speed beside the dense model in the same
    treatment and beside the very first row, and the memory that a call takes."""
    first = next(iter(next(iter(measured.values())).values())).median
    rows = [
        f"{'treatment':20}{'model':18}{'median ms':>11}{'p5':>9}{'p95':>9}{'frames/s':>10}{'speed':>8}{'in all':>8}"
        f"{'peak MiB':>10}"
    ]
    for treatment, models in measured.items():
        dense = next(iter(models.values())).median
        for name, row in models.items():
            rows.append(
                f"{treatment:20}{name:18}{row.median:>11.1f}{row.p5:>9.1f}{row.p95:>9.1f}"
                f"{1000 / row.median:>10.2f}{dense / row.median:>7.2f}x{first / row.median:>7.2f}x"
                f"{row.peak_memory / 2**20:>10.0f}"
            )
    return "\n".join(rows)


def format_details(details: dict[str, dict[str, Any]]) -> str:
    """A row a model: size, work, regions, milliseconds by part."""
    rows = []
    for name, values in details.items():
        parts = ", ".join(f"{part} {ms:.1f}" for part, ms in values["milliseconds_by_part"].items())
        regions = ", ".join(f"{count} for the {kind} head" for kind, count in values["regions"].items())
        rows.append(
            f"{name}: {values['parameters']:,} parameters, {values['macs'] / 1e9:.1f} GMACs, "
            f"{values['bytes'] / 2**20:.0f} MiB; regions: {regions}\n"
            f"  optimised torch, ms: {parts}; body, neck and RPN reach {values['share_of_peak']:.0%} of the peak rate"
        )
    return "\n".join(rows)
