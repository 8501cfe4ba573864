"""Tell the whole story on drawn data: train a detector, compress it by a plan, make it fast enough for a deadline."""

import argparse
import importlib.util
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from norton_det.analysis.complexity import count_detector, total
from norton_det.analysis.latency import Latency, detector_latency
from norton_det.analysis.machine import describe_machine
from norton_det.api import load_detector
from norton_det.builders.resolve import resolve_dataset
from norton_det.cli.main import main
from norton_det.cli.report import write_report
from norton_det.config import Config, load_config
from norton_det.data.clip import drawn_picture
from norton_det.data.images import read_image, write_png
from norton_det.deploy.optimize import Runtime, optimize
from norton_det.engine.folder import LOCK, sole_run
from norton_det.files import write_json
from norton_det.report.run_data import Benchmark, BenchmarkedModel
from norton_det.shrink.making import load
from norton_det.visualization.draw import draw_predictions, side_by_side

log = logging.getLogger(__name__)
CONFIG = "quickstart.yaml"
SHARE_OF_TIME = 0.7
"""The deadline, as a share of the dense detector's time in the same runtime."""
PHOTOS, STEPS = 120, 150
"""Photos for recovery, and its gradient steps."""


@dataclass(frozen=True)
class Row:
    """Holds one model of the story: accuracy on the validation set, size, and latency in the story's runtime."""

    AP: float
    AP50: float
    parameters: int
    macs: int
    latency_ms: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--output", type=Path, default=Path("output/quickstart"), help="the folder for everything")


def run(args: argparse.Namespace) -> None:
    """Run the commands of the story one after the other, then compare their results."""
    with sole_run(args.output / LOCK, f"--output {args.output}"):
        tell(args.output)


def tell(output: Path) -> None:
    """Tell the story, and write all its files into one folder."""
    config, runtime = load_config(CONFIG), find_runtime()
    folders = {name: output / name for name in ("dense", "compressed", "recovered", "small")}
    weights = {name: folder / "model_final.pth" for name, folder in folders.items()}
    summary = output / "summary.json"
    resume = [] if summary.exists() else ["--resume"]  # a story that was stopped goes on, one that ended begins anew
    summary.unlink(missing_ok=True)

    _command("train", "--config", CONFIG, "model.plan=none", f"output_dir={folders['dense']}", *resume)
    compress_by_plan(config, weights)
    picture = drawn_picture(*image_size(config))
    trained = {name: load_detector(weights[name]) for name in ("dense", "compressed", "recovered")}
    counts = {name: total(count_detector(detector, *image_size(config))) for name, detector in trained.items()}
    detectors: dict[str, Any] = {name: optimize(detector, [picture], runtime) for name, detector in trained.items()}
    deadline = SHARE_OF_TIME * detector_latency({"dense": detectors["dense"]}, [picture], runs=20)["dense"].median
    weights["small"] = folders["small"] / f"small{'.xml' if runtime == 'openvino' else '.pth'}"
    told = shrink(config, weights, deadline)
    detectors["small"] = load(weights["small"], told["small"]["choice"]["precision"], picture)

    latencies = detector_latency(detectors, [picture], runs=20)
    sizes = {name: (count.parameters, count.macs) for name, count in counts.items()}
    rows = compare(folders, sizes | {"small": (told["small"]["parameters"], told["small"]["macs"])}, latencies)
    write_json(summary, {"runtime": runtime, "models": {name: asdict(row) for name, row in rows.items()}})
    draw_pictures(config, detectors, output / "pictures")
    machine = describe_machine(torch.device("cpu"))
    timed = {name: BenchmarkedModel({runtime: latency}, trained=True) for name, latency in latencies.items()}
    reported = [folders[name] for name in ("dense", "compressed", "small", "recovered")]  # the last one in detail
    write_report(output / "report.html", reported, [Benchmark(machine, image_size(config), timed)])
    print(f"\n{format_rows(rows, runtime)}\n\nEverything is in {output.resolve()}; open its report.html first,")
    print(f"then {weights['small'].with_suffix('.html')}: how the small one was found, and where it differs")


def find_runtime() -> Runtime:
    """Return the runtime of all models of the story: OpenVINO if it is installed, else torch."""
    return "openvino" if importlib.util.find_spec("openvino") else "torch"


def compress_by_plan(config: Config, weights: Mapping[str, Path]) -> None:
    """Compress the dense detector by the configuration's plan, without recovery and with it, and evaluate both."""
    plan = config.model.plan
    assert isinstance(plan, dict)
    words = ["compress", "--weights", weights["dense"], "--plan", plan["notation"], "--rank", plan["rank"]]
    restore = ["--images", config.data.train, "--image-count", PHOTOS, "--steps", STEPS]
    for name, images in (("compressed", []), ("recovered", restore)):
        _command(*words, *images, "--output", weights[name])
        _evaluate(weights[name])


def shrink(config: Config, weights: Mapping[str, Path], milliseconds: float) -> dict[str, Any]:
    """Make the dense detector fast enough for a deadline, evaluate the file, and return what the command reports."""
    photos, small = resolve_dataset(config, "train").images, weights["small"]
    _command(
        "shrink", "--weights", weights["dense"], "--images", photos, "--image-count", PHOTOS,
        "--milliseconds", f"{milliseconds:.3g}", "--steps", STEPS, "--output", small,
    )  # fmt: skip
    _evaluate(small)
    told: dict[str, Any] = json.loads(small.with_suffix(".shrink.json").read_text())
    return told


def compare(
    folders: Mapping[str, Path], sizes: Mapping[str, tuple[int, int]], latencies: Mapping[str, Latency]
) -> dict[str, Row]:
    """Return a row for each model: the AP that evaluation wrote, parameters and MACs, and latency."""
    rows = {}
    for name, folder in folders.items():
        metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())["bbox"]
        rows[name] = Row(metrics["AP"], metrics["AP50"], *sizes[name], latencies[name].median)
    return rows


def image_size(config: Config) -> tuple[int, int]:
    """Return (height, width) in pixels of the image that is timed."""
    model = config.model
    assert model.min_size and model.max_size
    return model.min_size[-1], model.max_size


def draw_pictures(config: Config, detectors: Mapping[str, Any], folder: Path, number: int = 8) -> None:
    """Draw the first validation images with the detections of each model, side by side."""
    files = resolve_dataset(config, "test")
    for path in sorted(files.images.iterdir())[:number]:
        image = read_image(path)
        pictures = [
            draw_predictions(image, detector([image / 255])[0], detector.categories)
            for detector in detectors.values()
        ]
        write_png(folder / f"{path.stem}.png", side_by_side(pictures, list(detectors)))


def format_rows(rows: Mapping[str, Row], runtime: str) -> str:
    """Format the table of the story."""
    lines = [f"{'model':14}{'AP':>7}{'AP50':>7}{'parameters':>13}{'MMACs':>8}{f'ms, {runtime}':>14}{'speed':>8}"]
    for name, row in rows.items():
        lines.append(
            f"{name:14}{row.AP:>7.1f}{row.AP50:>7.1f}{row.parameters:>13,}{row.macs / 1e6:>8.0f}"
            f"{row.latency_ms:>14.1f}{rows['dense'].latency_ms / row.latency_ms:>7.2f}x"
        )
    return "\n".join(lines)


def _evaluate(weights: Path) -> None:
    own = [f"model.{name}=none" for name in ("min_size", "max_size", "anchor_sizes")]
    where = f"model.weights={weights}", f"output_dir={weights.parent}"
    _command("train", "--config", CONFIG, "--eval-only", *where, *own)


def _command(*words: Any) -> None:
    """Run one of our commands as a user would type it."""
    arguments: Sequence[str] = [str(word) for word in words]
    print(f"\n$ norton-det {shlex.join(arguments)}", flush=True)
    if main(arguments):
        raise ValueError(f"the step `norton-det {arguments[0]}` failed, see above; another --output begins anew")
