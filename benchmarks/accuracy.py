"""What compression, precision and fewer proposals cost in AP on the drawn dataset, models trained alike.

    python benchmarks/accuracy.py [--detectors faster_rcnn mask_rcnn keypoint_rcnn] [--folder output/accuracy]

Trains each detector dense at the quickstart's size, compresses it, its body alone (norton) and whole (norton-all),
recovers both from images without labels, fine-tunes them for a part of the schedule, and evaluates every one as it
is, exported, quantised, and with fewer proposals. Writes docs/benchmarks/accuracy.json, which
`benchmarks/deployment.py` puts on its page. What stands in the folder already is not made again.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from norton_det.builders.datasets import build_evaluator, build_test_dataset
from norton_det.builders.resolve import resolve_categories, resolve_dataset
from norton_det.builders.runs import evaluate_detector
from norton_det.cli.main import main as norton_det
from norton_det.config import load_config
from norton_det.data.catalog import open_images
from norton_det.data.reading import Task
from norton_det.deploy.optimize import optimize
from norton_det.deploy.parity import Parity, parity
from norton_det.deploy.runtimes import Precision, load_exported
from norton_det.files import write_json
from norton_det.models.persistence import detector_from_weights
from norton_det.models.weights import read_weights

RESULT = Path(__file__).parent.parent / "docs/benchmarks/accuracy.json"
PARTS = {"neck": 1, "rpn": 1, "box_head": 32, "mask_head": 1, "keypoint_head": 1}
SIZES = ["model.mask_channels=64", "model.keypoint_channels=64"]
FULL_WIDTH = [
    "model.plan=norton-77-all",
    "model.width=1",
    "model.fpn_channels=256",
    "model.box_channels=1024",
    "train.lr=5e-4",
]
PROPOSALS = (100, 50)
TASKS: dict[str, Task] = {"faster_rcnn": "bbox", "mask_rcnn": "segm", "keypoint_rcnn": "keypoints"}
PARITY_IMAGES = 24


def run(*words: object) -> None:
    print("$ norton-det", *words, flush=True)
    if norton_det([str(word) for word in words]):
        raise SystemExit(2)


def train(kind: str, folder: Path, *words: str) -> Path:
    """The weights of a run, and beside them its evaluation."""
    if not (folder / "evaluation/metrics.json").exists():
        run("train", "--config", "quickstart.yaml", f"model.detector={kind}", *SIZES, f"output_dir={folder}", *words)
    return folder / "model_final.pth"


def evaluate(kind: str, weights: Path, folder: Path, *words: str) -> dict[str, float]:
    """AP and AP50 of the detector's own task."""
    train(kind, folder, "--eval-only", f"model.weights={weights}", "model.plan=none", *words)
    return read_metrics(kind, folder / "evaluation")


def evaluate_bfloat16(kind: str, exported: Path, folder: Path) -> dict[str, float]:
    """The same of an exported OpenVINO file, run in bfloat16."""
    if not (folder / "metrics.json").exists():
        config = load_config("quickstart.yaml", [f"model.detector={kind}"])
        files = resolve_dataset(config, "test")
        detector = load_exported(exported, "bfloat16")
        evaluator = build_evaluator(config, files, resolve_categories(config, files))
        evaluate_detector(config, detector, build_test_dataset(config, files), evaluator, folder)
    return read_metrics(kind, folder)


def read_metrics(kind: str, folder: Path) -> dict[str, float]:
    metrics = json.loads((folder / "metrics.json").read_text())[TASKS[kind]]
    return {name: metrics[name] for name in ("AP", "AP50")}


def variants(kind: str, weights: Path, folder: Path) -> dict[str, dict[str, float]]:
    """A model as it is in torch, and in every form whose accuracy may differ."""
    rows = {"torch": evaluate(kind, weights, weights.parent)}
    for name, file, options in (
        ("openvino", "float32.xml", []),
        ("openvino int8", "int8.xml", ["--precision", "int8", "--images", "shapes_train"]),
    ):
        exported = folder / file
        if not exported.exists():
            run("export-model", "--weights", weights, "--output", exported, *options)
        rows[name] = evaluate(kind, exported, folder / name.replace(" ", "_"))
    rows["openvino bfloat16"] = evaluate_bfloat16(kind, folder / "float32.xml", folder / "openvino_bfloat16")
    for count in PROPOSALS:
        words = f"model.test_proposals={count}"
        rows[f"torch, {count} proposals"] = evaluate(kind, weights, folder / f"proposals_{count}", words)
    return rows


def measure(kind: str, folder: Path, epochs: str) -> dict[str, dict[str, dict[str, float]]]:
    """The rows of every model of a detector."""
    plan = load_config("quickstart.yaml").model.plan
    assert isinstance(plan, dict)
    models = {"dense": train(kind, folder / "dense", "model.plan=none")}
    for name, parts in (("norton", {}), ("norton-all", PARTS)):
        compressed = folder / f"{name}.pth"
        if not compressed.exists():
            write_json(folder / f"{name}_plan.json", {**plan, "parts": parts})
            run(
                "compress",
                "--weights",
                models["dense"],
                "--plan",
                folder / f"{name}_plan.json",
                "--images",
                "shapes_train",
                "--output",
                compressed,
            )
        tuning = [f"train.epochs={epochs}", "train.warmup_iterations=5", f"model.weights={compressed}"]
        models[name] = train(kind, folder / name, *tuning)
    return {name: variants(kind, weights, folder / f"{name}_variants") for name, weights in models.items()}


def measure_full_width(folder: Path, backbone_weights: str) -> dict[str, Any]:
    """A norton-77-all Faster R-CNN of full width, trained like the small ones: its rows, and how far boxes move."""
    words = [*FULL_WIDTH, f"model.backbone_weights={backbone_weights}"]
    weights = train("faster_rcnn", folder, *words)
    rows = variants("faster_rcnn", weights, folder / "variants")
    return {"rows": rows, "parity": {name: asdict(found) for name, found in parities(weights).items()}}


def parities(weights: Path) -> dict[Precision, Parity]:
    """Boxes of bfloat16 and int8 beside float32's, all by OpenVINO, on validation images of 800x1066 inside."""
    detector = detector_from_weights(read_weights(str(weights))).eval()
    detector.transform.min_size, detector.transform.max_size = (800,), 1333
    calibration, images = (list(open_images(name, PARITY_IMAGES)) for name in ("shapes_train", "shapes_val"))
    exact = optimize(detector, calibration, "openvino")(images)
    precisions: tuple[Precision, ...] = ("bfloat16", "int8")
    return {
        precision: parity(optimize(detector, calibration, "openvino", precision)(images), exact)
        for precision in precisions
    }


def keep(name: str, values: dict[str, Any]) -> None:
    """Put values into the JSON, beside what stands in it."""
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    write_json(RESULT, result | {name: values}, indent=2)
    print(json.dumps(values, indent=2), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("output/accuracy"))
    parser.add_argument("--epochs", default="2.5", help="of fine-tuning; the dense model has the quickstart's")
    parser.add_argument("--detectors", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--full-width", metavar="RESNET50.pth", help="also one of full width, on these weights")
    arguments = parser.parse_args()
    for kind in arguments.detectors:
        tuned = {"dense": load_config("quickstart.yaml").train.epochs, "tuned": float(arguments.epochs)}
        keep("epochs", tuned)
        keep(kind, measure(kind, arguments.folder / kind, arguments.epochs))
    if arguments.full_width:
        keep("full_width", measure_full_width(arguments.folder / "full_width", arguments.full_width))


if __name__ == "__main__":
    main()
