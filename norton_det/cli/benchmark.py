"""Measure the latency of a configuration's detector, dense and compressed in turn."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from norton_det import build
from norton_det.analysis.latency import Latency, detector_latency
from norton_det.config import load_config
from norton_det.data.shapes import draw_scene
from norton_det.files import write_json
from norton_det.visualization.plots import save_latency_plot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the configuration's)")
    parser.add_argument(
        "--input-size", nargs=2, type=int, default=[480, 640], metavar=("H", "W"), help="pixels of the image"
    )
    parser.add_argument("--runs", type=int, default=10, help="counted calls of each model")
    parser.add_argument("--json", type=Path, help="write the numbers there, and a plot beside them (.png)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the configuration")


def run(args: argparse.Namespace) -> None:
    """Print the table, write the JSON and the plot."""
    device_override = [f"device={args.device}"] if args.device else []
    config = load_config(args.config, [*args.overrides, *device_override])
    device = build.resolve_device(config)
    image = benchmark_image(*args.input_size).to(device)
    models = {name: built.detector.to(device).eval() for name, built in build.random_pair(config).items()}
    latencies = detector_latency(models, image, runs=args.runs)
    print(format_latencies(latencies))
    if args.json:
        write_json(args.json, {"models": {name: asdict(latency) for name, latency in latencies.items()}})
        save_latency_plot(args.json.with_suffix(".png"), {config.model.detector: latencies})


def benchmark_image(height: int, width: int) -> Any:
    """A drawn scene of the wanted size, float32 RGB (3, height, width) in 0 to 1."""
    scene = torch.from_numpy(draw_scene(np.random.default_rng(0)).image).permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.interpolate(scene, (height, width), mode="bilinear", antialias=True)[0]


def format_latencies(latencies: dict[str, Latency]) -> str:
    """A table: a row a model, milliseconds, and the speed beside the first row."""
    first = next(iter(latencies.values())).median
    rows = [f"{'model':16}{'median ms':>11}{'p5':>9}{'p95':>9}{'frames/s':>10}{'speed':>8}"]
    for name, latency in latencies.items():
        speed = f"{first / latency.median:.2f}x"
        rows.append(
            f"{name:16}{latency.median:>11.1f}{latency.p5:>9.1f}{latency.p95:>9.1f}"
            f"{1000 / latency.median:>10.2f}{speed:>8}"
        )
    return "\n".join(rows)
