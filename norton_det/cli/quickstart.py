"""Tell the whole story on drawn data: train a detector, compress it by a plan, make it fast enough for a deadline."""

import argparse
import importlib.util
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from norton_det.analysis.complexity import count_detector, total
from norton_det.analysis.latency import detector_latency
from norton_det.analysis.machine import describe_machine
from norton_det.api import load_detector
from norton_det.builders.resolve import resolve_dataset
from norton_det.cli.main import STOPPED, main
from norton_det.cli.report import write_report
from norton_det.config import Config, load_config
from norton_det.data.clip import drawn_picture
from norton_det.deploy.optimize import Runtime, optimize
from norton_det.engine.folder import LOCK, sole_run
from norton_det.files import write_json
from norton_det.report.run_data import Benchmark, BenchmarkedModel
from norton_det.report.story import draw_pictures, format_table, read_models
from norton_det.shrink.making import load

log = logging.getLogger(__name__)
CONFIG = "quickstart.yaml"
GOES_ON = "the same command goes on from there"
SHARE_OF_TIME = 0.7
"""The deadline, as a share of the dense detector's time in the same runtime."""
PHOTOS, STEPS = 120, 150
"""Photos for recovery, and its gradient steps."""


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
    models = read_models(folders, sizes | {"small": (told["small"]["parameters"], told["small"]["macs"])}, latencies)
    write_json(summary, {"runtime": runtime, "models": {name: asdict(model) for name, model in models.items()}})
    draw_pictures(resolve_dataset(config, "test").images, detectors, output / "pictures")
    machine = describe_machine(torch.device("cpu"))
    timed = {name: BenchmarkedModel({runtime: latency}, trained=True) for name, latency in latencies.items()}
    reported = [folders[name] for name in ("dense", "compressed", "small", "recovered")]  # the last one in detail
    write_report(output / "report.html", reported, [Benchmark(machine, image_size(config), timed)])
    print(f"\n{format_table(models, runtime)}\n\nEverything is in {output.resolve()}; open its report.html first,")
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


def image_size(config: Config) -> tuple[int, int]:
    """Return (height, width) in pixels of the image that is timed."""
    model = config.model
    assert model.min_size and model.max_size
    return model.min_size[-1], model.max_size


def _evaluate(weights: Path) -> None:
    own = [f"model.{name}=none" for name in ("min_size", "max_size", "anchor_sizes")]
    where = f"model.weights={weights}", f"output_dir={weights.parent}"
    _command("train", "--config", CONFIG, "--eval-only", *where, *own)


def _command(*words: Any) -> None:
    """Run one of our commands as a user would type it."""
    arguments: Sequence[str] = [str(word) for word in words]
    print(f"\n$ norton-det {shlex.join(arguments)}", flush=True)
    ended = main(arguments)
    if ended == STOPPED:
        raise KeyboardInterrupt
    if ended:
        raise ValueError(f"the step `norton-det {arguments[0]}` failed, see above; another --output begins anew")
