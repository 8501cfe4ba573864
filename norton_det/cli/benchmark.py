"""Measure the latency of a configuration's detector, dense and compressed in turn, each in every treatment."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from norton_det.analysis.machine import describe_machine
from norton_det.builders.detector import random_pair
from norton_det.builders.resolve import resolve_device
from norton_det.cli.options import require_at_least
from norton_det.config import Config, load_config
from norton_det.data.clip import drawn_picture
from norton_det.data.images import ImageFiles
from norton_det.deploy.benchmark import measure_side_by_side
from norton_det.deploy.tables import format_latencies, format_parts, format_profiles
from norton_det.deploy.treatments import TREATMENTS, fix_workload, usable_treatments
from norton_det.files import write_json
from norton_det.models.persistence import detector_from_weights
from norton_det.models.weights import read_weights, weights_name
from norton_det.visualization.plots import save_latency_plot

CONFIG = "faster_rcnn_norton.yaml"
LESS_MEMORY = "lower --batch, --input-size or model.min_size, or measure fewer models and treatments at a time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--config", default=CONFIG, help=f"a YAML file, or the name of one in configs/ ({CONFIG})")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the configuration's)")
    models = parser.add_mutually_exclusive_group()
    models.add_argument(
        "--plans", nargs="+", metavar="PLAN", help="compressed models to measure (default: the configuration's plan)"
    )
    models.add_argument(
        "--weights", nargs="+", type=Path, metavar="W", help="measure these trained detectors (.pth) instead"
    )
    parser.add_argument(
        "--treatments", nargs="+", choices=TREATMENTS, metavar="NAME",
        help=f"runtimes and precisions (default: all that can be used here): {', '.join(TREATMENTS)}",
    )  # fmt: skip
    parser.add_argument("--image", type=Path, help="the image to detect on (default: a drawn scene)")
    parser.add_argument(
        "--input-size", nargs=2, type=int, default=[480, 640], metavar=("H", "W"), help="pixels of the drawn scene"
    )
    parser.add_argument("--batch", type=int, default=1, help="images in a call: the same one, repeated")
    parser.add_argument("--detections", type=int, default=20, help="detections in an image, which other heads see")
    parser.add_argument("--runs", type=int, default=10, help="timed calls of each model and treatment")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, and a plot (.png) beside it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the configuration")


def run(args: argparse.Namespace) -> None:
    """Print the tables, write the JSON and the plot."""
    require_at_least(args, batch=1, detections=1, runs=1, input_size=1)
    device_override = [f"device={args.device}"] if args.device else []
    config = load_config(args.config, [*args.overrides, *device_override])
    device = resolve_device(config)
    image = ImageFiles([args.image])[0] if args.image else drawn_picture(*args.input_size)
    images = [image.to(device)] * args.batch
    models = {}
    built = load_models(args.weights) if args.weights else build_models(config, args.plans)
    for name, detector in built.items():
        fix_workload(detector, args.detections)
        models[name] = detector.to(device).eval()
    treatments = args.treatments or usable_treatments(device)
    found = measure_side_by_side(models, treatments, images, args.runs)
    print(format_latencies(found.latencies))
    print(format_profiles(found.profiles))
    print(format_parts(found))
    machine, rates = describe_machine(device), found.roofline
    limits = f"product of matrices {2 * rates.macs / 1e9:.0f} GFLOP/s, copy {rates.bytes / 1e9:.1f} GB/s"
    print(f"machine: {machine}; {limits}")
    if args.json:
        told = {name: {"trained": bool(args.weights), **found.to_dict(name)} for name in models}
        size = [*image.shape[1:]]
        content = {"machine": machine, "roofline": asdict(rates), "image": size, "batch": args.batch, "models": told}
        write_json(args.json, content)
        save_latency_plot(args.json.with_suffix(".png"), found.latencies)


def build_models(config: Config, plans: list[str] | None) -> dict[str, Any]:
    """Build detectors with random weights, by name; the dense one comes first."""
    if not plans:
        return random_pair(config)
    models: dict[str, Any] = {}
    for plan in plans:
        changed = config.model_copy(update={"model": config.model.model_copy(update={"plan": plan})})
        pair = random_pair(changed)
        models.setdefault("dense", pair["dense"])
        models[plan] = pair["compressed"]
    return models


def load_models(weights: Sequence[Path]) -> dict[str, Any]:
    """Load trained detectors by name. Raises ValueError if two have the same name, or a file holds no detector."""
    names = [weights_name(path) for path in weights]
    if len(set(names)) < len(names):
        raise ValueError(f"--weights: two detectors have the same name, got {', '.join(names)}")
    return {name: detector_from_weights(read_weights(path)) for name, path in zip(names, weights, strict=True)}
