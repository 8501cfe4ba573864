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
from deployment import TITLES
from matplotlib.figure import Figure
from published import published_compress, published_kept

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
from norton_det.visualization.plots import save_figure

RESULTS = Path(__file__).parent.parent / "docs/without_labels"
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
HEAD = """# Accuracy without labels

Made by `python benchmarks/without_labels.py`. The quickstart's detectors, a quarter of the width, trained dense on
`shapes`; their bodies compressed by the paper's plans at rank 1 (or as said), then measured at once: AP of boxes,
masks and keypoints on the 200 validation images. No label is read.

*published* is the pruning of the published code; *plain* is ours, with nothing done afterwards; *BatchNorm* has its
statistics estimated anew on 200 training images; *recovered* is restored on them by `recover`, part after part;
*searched, recovered* is so too, by the plan that `search_plan` finds for the same MACs.
*Seconds* is what *recovered* took on one core that other work may have shared.
"""
LEFT = """What recovery leaves: the share of energy by which the pyramid's levels differ from the dense detector's,
mean over the levels, on the validation images. It tells plans apart more finely than the AP of 200 images does.
"""
FINE_TUNING = """## Then fine-tuned

By `python benchmarks/without_labels.py --fine-tuning`: Faster R-CNN, fine-tuned with labels from what stands above,
for a share of the dense detector's schedule, each share a schedule of its own. The dense one has not converged after
its own: where more training ends above it, that is the training's doing.
"""
FULL_SIZE = """## At full size

Faster R-CNN of full width on images of 800x1066, started from ImageNet's filters (stem to layer3; layer4 from random
ones) and trained dense on `shapes` for four epochs, on one {machine}, then compressed: what it learnt in full is
harder to keep. By

{commands}
"""
REAL = """## Real filters, real images

By `python benchmarks/real_recovery.py --weights resnet50.pth --train coco/train2017 --test coco/val2017 --steps
{steps}`: a ResNet-50 trained on ImageNet, from the stem to layer3 (its 3x3
convolutions decomposed, then pruned where a plan is named), restored on {images} images of COCO's training set with
{steps} gradient steps a part, measured on 96 of its validation set: the relative error of the outputs of
layer1, layer2 and layer3.
"""

RESTORED = ("recovered", "searched, recovered")

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


def plot_budgets(path: Path, results: dict[str, Any]) -> None:
    """A panel a detector: AP by the share of the body's MACs, a curve a way, the dense detector's AP dashed."""
    figure = Figure(figsize=(4.2 * len(results), 3.6), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (kind, result) in zip(panels, results.items(), strict=True):
        plans = sorted(by_plan(result).values(), key=lambda plan: plan["macs"])
        axes.axhline(result["dense"]["AP"], color="0.4", linestyle="--", linewidth=1, label="dense")
        for way in plans[0]["ways"]:
            found = [(plan["macs"], plan["ways"][way]["AP"]) for plan in plans if way in plan["ways"]]
            axes.plot(*zip(*found, strict=True), marker="o", markersize=4, label=way)
        axes.set_title(f"{TITLES[kind]}, {TASKS[kind]}", fontsize=10)
        axes.set_xlabel("MACs of the body, share of the dense one's")
        style(axes)
    panels[0].set_ylabel("AP")
    panels[0].legend(frameon=False, fontsize=8)
    save_figure(path, figure)


def plot_fine_tuning(path: Path, result: dict[str, Any]) -> None:
    """AP by the share of the schedule, a curve a plan and way."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for number, (plan, ways) in enumerate(result.items()):
        for way, row in ways.items():
            line = {"plain": ":", "recovered": "--"}.get(way, "-")
            points = sorted((float(share), value) for share, value in row.items())
            axes.plot(*zip(*points, strict=True), line, color=f"C{number}", marker="o", markersize=4,
                      label=f"{plan}, {way}")  # fmt: skip
    axes.set_xlabel("fine-tuning, share of the dense detector's schedule")
    axes.set_ylabel("AP of boxes")
    axes.legend(frameon=False, fontsize=8, handlelength=4)
    style(axes)
    save_figure(path, figure)


def style(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(bottom=0)


def by_plan(result: dict[str, Any]) -> dict[str, Any]:
    return {name: plan for name, plan in result.items() if name != "dense"}


def read(name: str) -> Any:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def what_is_left(results: dict[str, Any]) -> list[str]:
    """The table of the pyramid's errors, a row a plan."""
    titles = [f"{TITLES[kind]}, {way}" for kind in results for way in RESTORED]
    lines = [LEFT, f"| | {' | '.join(titles)} |", "| --- |" + " ---: |" * len(titles)]
    for name in PLANS:
        rows = [result[name]["ways"][way] for result in results.values() for way in RESTORED]
        lines.append(f"| {name} | {' | '.join(format(row['pyramid'], '.3f') for row in rows)} |")
    return [*lines, ""]


def write_page() -> None:
    """docs/without_labels.md and its plots, of what was measured."""
    results = {kind: found for kind in TASKS if (found := read(kind))}
    lines = [HEAD]
    if results:
        plot_budgets(RESULTS / "budgets.png", results)
        lines.append("![AP by budget](without_labels/budgets.png)\n")
        for kind, result in results.items():
            ways = list(next(iter(by_plan(result).values()))["ways"])
            lines += [f"| {TITLES[kind]}, dense {result['dense']['AP']:.1f} | MACs | {' | '.join(ways)} | seconds |",
                      "| --- |" + " ---: |" * (len(ways) + 2)]  # fmt: skip
            for name, plan in by_plan(result).items():
                cells = " | ".join(f"{row['AP']:.1f}" for row in plan["ways"].values())
                seconds = plan["ways"].get("recovered", {}).get("seconds", "-")
                lines.append(f"| {name} | {plan['macs']:.0%} | {cells} | {seconds} |")
            lines.append("")
        lines += what_is_left(results)
    if tuned := read("fine_tuning"):
        plot_fine_tuning(RESULTS / "fine_tuning.png", tuned)
        shares = sorted({float(share) for ways in tuned.values() for row in ways.values() for share in row})
        lines += [FINE_TUNING, f"| AP of boxes after | {' | '.join(f'{share:.0%}' for share in shares)} |",
                  "| --- |" + " ---: |" * len(shares)]  # fmt: skip
        for plan, ways in tuned.items():
            for way, row in ways.items():
                values = {float(share): f"{value:.1f}" for share, value in row.items()}
                lines.append(f"| {plan}, {way} | {' | '.join(values.get(share, '') for share in shares)} |")
        lines.append("\n![AP by fine-tuning](without_labels/fine_tuning.png)\n")
    if full := read("full_size"):
        commands = "\n".join(f"    python {command}" for command in full["commands"])
        lines += [FULL_SIZE.format(machine=full["machine"], commands=commands),
                  "| Faster R-CNN, full size | AP | AP50 |", "| --- | ---: | ---: |"]  # fmt: skip
        lines += [f"| {name} | {ap:.1f} | {ap50:.1f} |" for name, (ap, ap50) in full["rows"].items()]
        lines.append("")
    if real := read("real_filters"):
        lines += [REAL.format(**real["how"]), "| | compressed | BatchNorm | restored | seconds |",
                  "| --- |" + " ---: |" * 4]  # fmt: skip
        for name, row in real["rows"].items():
            cells = " | ".join(
                " / ".join(f"{error:.2f}" for error in row[way]) for way in ("compressed", "BatchNorm", "restored")
            )
            lines.append(f"| {name} | {cells} | {row['seconds']} |")
        lines.append("")
    (RESULTS.parent / "without_labels.md").write_text("\n".join(lines), encoding="utf-8")


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
