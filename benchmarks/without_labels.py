"""AP of compressed detectors before any label is read, and after a part of the fine-tuning, on the drawn dataset.

    python benchmarks/without_labels.py [--detectors faster_rcnn mask_rcnn keypoint_rcnn] [--folder output/accuracy]
    python benchmarks/without_labels.py --fine-tuning

The dense detectors are those of `benchmarks/accuracy.py`, trained where the folder does not have them. Each is
compressed by five plans of the paper, and by the searched plan of the same MACs. With `--fine-tuning`, Faster R-CNN
is fine-tuned from two of these plans for shares of the dense detector's schedule. Writes docs/without_labels/, and
docs/without_labels.md from all that it holds; what stands there is not measured again. full_size.json was written by
hand, from the commands that it names.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accuracy import TASKS, evaluate, train
from published import published_compress, published_kept
from without_labels_page import RESTORED, RESULTS, by_plan, write_page

from norton_det.compression.building import build_network
from norton_det.compression.compress import compress
from norton_det.compression.plan import CompressionPlan, load_plan
from norton_det.compression.recover import compress_and_recover, recover
from norton_det.compression.search.budget import Budget, Scope
from norton_det.compression.search.plan_search import best_plan, measure_sensitivities
from norton_det.config import load_config
from norton_det.data.catalog import open_images
from norton_det.files import write_json
from norton_det.models.channels import read_body
from norton_det.models.persistence import detector_from_weights, save_weights
from norton_det.models.structure import named_structure
from norton_det.models.weights import read_weights

PLANS = {"norton-43": 1, "norton-59, rank 3": 3, "norton-59": 1, "norton-69": 1, "norton-77": 1}
"""The paper's plans, and their rank."""
IMAGES = 200
INPUT = (192, 256)
"""Pixels at which MACs are counted: the drawn images'."""
TUNED = [
    ("norton-59", "plain", (0.1, 0.5)),
    ("norton-59", "searched, recovered", (0.1, 0.5)),
    ("norton-77", "plain", (0.1, 0.5, 1.0)),
    ("norton-77", "recovered", (0.33,)),
    ("norton-77", "searched, recovered", (0.1, 0.5)),
]
"""What is fine-tuned: a plan, a way, and for which shares of the dense detector's schedule."""

Way = Callable[[Any, CompressionPlan, Any], Any]
"""From a dense detector, a plan and images to a compressed detector."""


def published(dense: Any, plan: CompressionPlan, images: Any) -> Any:
    """The published code's body in our detector; the pyramid reads the channels that its last convolutions keep."""
    detector, _ = compress(dense, plan)
    state = dense.backbone.body.state_dict()
    width = load_config("quickstart.yaml").model.width
    network = build_network(named_structure(None, "resnet50", 1), width=width)
    network.load_state_dict({**network.state_dict(), **state})
    theirs = published_compress(network.eval(), plan)
    detector.backbone.body.load_state_dict(
        {name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    )
    body = read_body(network)
    for level, stage in enumerate(body.stages):
        lateral, last = f"backbone.fpn.inner_blocks.{level}.0", body.last_block(stage).convs[-1]
        width = theirs.get_submodule(last).out_channels
        kept = published_kept(network.get_submodule(last), width)
        ours, original = (model.get_submodule(lateral) for model in (detector, dense))
        ours.load_state_dict({"weight": original.weight[:, kept], "bias": original.bias})
    return detector


def plain(dense: Any, plan: CompressionPlan, images: Any) -> Any:
    return compress(dense, plan)[0]


def statistics(dense: Any, plan: CompressionPlan, images: Any) -> Any:
    compressed, report = compress(dense, plan)
    return recover(compressed, dense, images, report.kept, steps=0)[0]


def recovered(dense: Any, plan: CompressionPlan, images: Any) -> Any:
    return compress_and_recover(dense, plan, images)[0]


def measure(kind: str, folder: Path) -> None:
    """Fill docs/without_labels/KIND.json: by plan, the AP of each way, and the seconds that it takes."""
    weights = train(kind, folder / kind / "dense", "model.plan=none")
    dense: Any = detector_from_weights(read_weights(str(weights))).eval()
    images = open_images("shapes_train", IMAGES)
    path = RESULTS / f"{kind}.json"
    result = json.loads(path.read_text()) if path.exists() else {"dense": evaluate(kind, weights, weights.parent)}
    scope = Scope(dense, False, INPUT)
    whole = scope.cost(CompressionPlan(), "macs")
    sensitivities = cache(lambda: measure_sensitivities(dense, images))
    for name, rank in PLANS.items():
        plan = load_plan(name.partition(",")[0], read_body(dense), rank)
        share = scope.cost(plan, "macs") / whole
        rows = result.setdefault(name, {"macs": share, "ways": {}})["ways"]

        def searched(dense: Any, plan: CompressionPlan, images: Any, share: float = share) -> Any:
            return recovered(dense, best_plan(dense, sensitivities(), Budget("macs", share, INPUT))[0], images)

        ways: dict[str, Way] = {
            "published": published,
            "plain": plain,
            "BatchNorm": statistics,
            "recovered": recovered,
            "searched, recovered": searched,
        }
        for way, make in ways.items():
            if way in rows:
                continue
            started = time.perf_counter()
            detector = make(dense, plan, images).eval()
            seconds = time.perf_counter() - started
            file = compressed_file(folder, name, way, kind)
            save_weights(file, detector)
            rows[way] = {**evaluate(kind, file, file.parent), "seconds": round(seconds)}
            print(kind, name, way, rows[way], flush=True)
            write_json(path, result, indent=2)


@torch.no_grad()
def measure_pyramid(kind: str, folder: Path) -> None:
    """Add to the rows of RESTORED how far the pyramid is from the dense one's."""
    images = open_images("shapes_val", IMAGES)
    dense: Any = detector_from_weights(read_weights(str(folder / kind / "dense/model_final.pth"))).eval()
    path = RESULTS / f"{kind}.json"
    result = json.loads(path.read_text())
    for name, plan in by_plan(result).items():
        for way in RESTORED:
            if "pyramid" not in plan["ways"][way]:
                weights = read_weights(str(compressed_file(folder, name, way, kind)))
                plan["ways"][way]["pyramid"] = pyramid_error(dense, detector_from_weights(weights).eval(), images)
                write_json(path, result, indent=2)


def pyramid_error(dense: Any, detector: Any, images: Any) -> float:
    """|y - y'|^2 / |y|^2 of the levels y of the dense pyramid, each over all images; the mean of the levels."""
    difference, energy = Counter[str](), Counter[str]()
    for image in images:
        batch, _ = dense.transform([image])
        wanted, found = (model.backbone(batch.tensors) for model in (dense, detector))
        for level, y in wanted.items():
            difference[level] += float((found[level] - y).square().sum())
            energy[level] += float(y.square().sum())
    return mean(difference[level] / energy[level] for level in energy)


def compressed_file(folder: Path, plan: str, way: str, kind: str) -> Path:
    return folder / kind / "without_labels" / f"{plan}, {way}".replace(", ", "_").replace(" ", "_") / "compressed.pth"


def fine_tune(folder: Path) -> None:
    """Fill docs/without_labels/fine_tuning.json: by plan and way, AP by the share of the schedule."""
    path = RESULTS / "fine_tuning.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    start = json.loads((RESULTS / "faster_rcnn.json").read_text())
    schedule = load_config("quickstart.yaml").train
    for plan, way, shares in TUNED:
        row = result.setdefault(plan, {}).setdefault(way, {"0": start[plan]["ways"][way]["AP"]})
        weights = compressed_file(folder, plan, way, "faster_rcnn")
        for share in shares:
            if str(share) in row:
                continue
            output = weights.parent / f"tuned_{share}"
            train(
                "faster_rcnn",
                output,
                f"model.weights={weights}",
                f"train.epochs={share * schedule.epochs}",
                f"train.warmup_iterations={round(share * schedule.warmup_iterations)}",
            )
            row[str(share)] = json.loads((output / "evaluation/metrics.json").read_text())["bbox"]["AP"]
            print(plan, way, row, flush=True)
            write_json(path, result, indent=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("output/accuracy"))
    parser.add_argument("--detectors", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--fine-tuning", action="store_true", help="fine-tune what was compressed before, instead")
    arguments = parser.parse_args()
    if arguments.fine_tuning:
        fine_tune(arguments.folder)
    else:
        for kind in arguments.detectors:
            measure(kind, arguments.folder)
            measure_pyramid(kind, arguments.folder)
    write_page()


if __name__ == "__main__":
    main()
