"""The whole story on drawn data: train, compress, recover without labels, fine-tune, evaluate and benchmark."""

import argparse
import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from norton_det.analysis.complexity import count_detector, total
from norton_det.analysis.latency import Latency, detector_latency
from norton_det.analysis.machine import describe_machine
from norton_det.api import load_detector
from norton_det.builders.resolve import resolve_dataset, resolve_device
from norton_det.cli.benchmark import build_models
from norton_det.cli.main import main
from norton_det.cli.report import write_report
from norton_det.config import Config, load_config
from norton_det.data.clip import drawn_picture
from norton_det.data.images import read_image, write_png
from norton_det.deploy.benchmark import Measured, format_latencies, measure
from norton_det.deploy.treatments import SHIPPED, fix_workload
from norton_det.engine.folder import LOCK, sole_run
from norton_det.files import write_json
from norton_det.report.run_data import Benchmark, BenchmarkedModel
from norton_det.visualization.draw import draw_predictions, side_by_side
from norton_det.visualization.plots import save_latency_plot

log = logging.getLogger(__name__)
CONFIG = "quickstart.yaml"
FINE_TUNING = "quickstart_finetune.yaml"
FULL_SIZE = "faster_rcnn_norton_all.yaml"
FULL_SIZE_IMAGE = (480, 640)


@dataclass(frozen=True)
class Row:
    """One model of the story: accuracy on the validation set, size and speed at the quickstart's image size."""

    AP: float
    AP50: float
    parameters: int
    macs: int
    latency_ms: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--output", type=Path, default=Path("output/quickstart"), help="the folder for everything")


def run(args: argparse.Namespace) -> None:
    """Run the commands of the story one after the other, then compare what they left."""
    with sole_run(args.output / LOCK, f"--output {args.output}"):
        tell(args.output)


def tell(output: Path) -> None:
    """The story, with everything that it leaves in one folder."""
    folders = {name: output / name for name in ("dense", "compressed", "recovered", "fine_tuned")}
    weights = {name: folder / "model_final.pth" for name, folder in folders.items()}
    config = load_config(CONFIG)
    plan = config.model.plan
    assert isinstance(plan, dict)

    summary = output / "summary.json"
    resume = [] if summary.exists() else ["--resume"]  # a story that was stopped goes on, one that ended begins anew
    summary.unlink(missing_ok=True)
    _command("train", "--config", CONFIG, "model.plan=none", f"output_dir={folders['dense']}", *resume)
    compress = ["compress", "--weights", weights["dense"], "--plan", plan["notation"], "--rank", plan["rank"]]
    for name, images in (("compressed", []), ("recovered", ["--images", config.data.train])):
        _command(*compress, *images, "--output", weights[name])
        start = f"model.weights={weights[name]}"
        _command("train", "--config", CONFIG, "--eval-only", start, f"output_dir={folders[name]}")
    _command("train", "--config", FINE_TUNING, start, f"output_dir={folders['fine_tuned']}", *resume)

    detectors = {name: load_detector(path).eval() for name, path in weights.items()}
    latencies = time_models(config, detectors)
    rows = compare(config, folders, detectors, latencies)
    full_size = time_full_size()
    write_json(
        summary,
        {
            "models": {name: asdict(row) for name, row in rows.items()},
            "full_size": {
                treatment: {name: asdict(latency) for name, latency in models.items()}
                for treatment, models in full_size.items()
            },
        },
    )
    save_latency_plot(output / "full_size_latency.png", full_size)
    draw_pictures(config, detectors, output / "pictures")
    write_report(output / "report.html", list(folders.values()), benchmarks(config, latencies, full_size))
    print(f"\n{format_rows(rows)}\n\nFull-size Faster R-CNN ({FULL_SIZE}) on one 480x640 image:")
    print(f"{format_latencies(full_size)}\n\nEverything is in {output.resolve()}; open its report.html first")


def time_models(config: Config, detectors: dict[str, Any]) -> dict[str, Latency]:
    """Latency of each model at the quickstart's image size, in turn."""
    return detector_latency(detectors, [drawn_picture(*image_size(config))], runs=20)


def compare(
    config: Config, folders: dict[str, Path], detectors: dict[str, Any], latencies: dict[str, Latency]
) -> dict[str, Row]:
    """A row a model: the AP that evaluation left, counts and latency."""
    rows = {}
    for name, detector in detectors.items():
        metrics = json.loads((folders[name] / "evaluation" / "metrics.json").read_text())["bbox"]
        counts = total(count_detector(detector, *image_size(config)))
        rows[name] = Row(metrics["AP"], metrics["AP50"], counts.parameters, counts.macs, latencies[name].median)
    return rows


def image_size(config: Config) -> tuple[int, int]:
    """(height, width) in pixels of what is counted and timed."""
    model = config.model
    assert model.min_size and model.max_size
    return model.min_size[-1], model.max_size


def benchmarks(
    config: Config, latencies: dict[str, Latency], full_size: dict[str, dict[str, Measured]]
) -> list[Benchmark]:
    """The latencies as the report takes them."""
    runs = {name: BenchmarkedModel({SHIPPED: latency}, trained=True) for name, latency in latencies.items()}
    names = list(next(iter(full_size.values())))
    full = {
        f"full-size {name}": BenchmarkedModel({treatment: models[name] for treatment, models in full_size.items()})
        for name in names
    }
    device = resolve_device(config)
    machine = describe_machine(device)
    return [Benchmark(machine, image_size(config), runs), Benchmark(machine, FULL_SIZE_IMAGE, full)]


def time_full_size() -> dict[str, dict[str, Measured]]:
    """Latency of the detectors that a COCO config builds, by treatment, with random weights: those do not matter."""
    models = build_models(load_config(FULL_SIZE), None)
    for model in models.values():
        fix_workload(model, detections=20)
    image = drawn_picture(*FULL_SIZE_IMAGE)
    return {treatment: measure(models, treatment, [image], runs=3) for treatment in (SHIPPED, "torch")}


def draw_pictures(config: Config, detectors: dict[str, Any], folder: Path, number: int = 8) -> None:
    """The first validation images with the detections of each model, side by side."""
    files = resolve_dataset(config, "test")
    for path in sorted(files.images.iterdir())[:number]:
        image = read_image(path)
        with torch.inference_mode():
            pictures = [
                draw_predictions(image, detector([image / 255])[0], detector.categories)
                for detector in detectors.values()
            ]
        write_png(folder / f"{path.stem}.png", side_by_side(pictures, list(detectors)))


def format_rows(rows: dict[str, Row]) -> str:
    """The table of the story."""
    lines = [f"{'model':14}{'AP':>7}{'AP50':>7}{'parameters':>13}{'MMACs':>9}{'ms':>8}"]
    for name, row in rows.items():
        lines.append(
            f"{name.replace('_', '-'):14}{row.AP:>7.1f}{row.AP50:>7.1f}{row.parameters:>13,}"
            f"{row.macs / 1e6:>9.0f}{row.latency_ms:>8.1f}"
        )
    return "\n".join(lines)


def _command(*words: Any) -> None:
    """Run one of our commands as a user would type it."""
    arguments: Sequence[str] = [str(word) for word in words]
    print(f"\n$ norton-det {shlex.join(arguments)}", flush=True)
    if main(arguments):
        raise ValueError(f"the step `norton-det {arguments[0]}` failed, see above; another --output begins anew")
