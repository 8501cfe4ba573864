"""How well agreement, which needs no labels, tells what is lost of AP, which does.

    python benchmarks/agreement.py --name cells --dense dense/model_final.pth --compressed small/model_final.pth ... \
        --annotations val.json --images images [--variants --calibration photos]

Measures both of every compressed detector on labelled images, and with --variants of the dense one at smaller images,
with fewer proposals, in bfloat16 and, where OpenVINO is installed and there are photos to calibrate it on, in int8.
Adds them under the name to docs/agreement/agreement.json, draws docs/agreement/agreement.png, and writes the tables
at the end of docs/agreement.md anew, of all names. `--draw` does only the latter.
"""

import argparse
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import pearsonr, spearmanr

from norton_det.api import findings_of, load_detector, optimize, reference_findings
from norton_det.data.catalog import open_images
from norton_det.data.images import ImageFiles
from norton_det.data.reading import FINDINGS, read_content
from norton_det.evaluation.agreement import Findings, agreement_of
from norton_det.evaluation.coco import evaluate_results
from norton_det.files import write_json
from norton_det.models.settings import read_settings
from norton_det.shrink.levers import set_levers
from norton_det.visualization.plots import save_figure

DOCS = Path(__file__).parent.parent / "docs"
RESULT, PLOT, PAGE = DOCS / "agreement/agreement.json", DOCS / "agreement/agreement.png", DOCS / "agreement.md"
MARK = "<!-- Below: written by benchmarks/agreement.py -->\n"
SCORES = (0.3, 0.5, 0.7)
MEASURES = {
    "disagreement": "agreement",
    "disagreement_75": "its AP75",
    "alone": "AP against what the dense one finds in one view",
}
SCORE = 0.5
"""The score of the columns of the table of detectors."""
SIZES, PROPOSALS, CALIBRATION = (0.85, 0.75, 0.5), (50, 10), 100


class Labelled:
    """The images of a JSON in COCO's format, numbered in the order of their ids."""

    def __init__(self, annotations: Path, folder: Path, count: int | None) -> None:
        content = read_content(annotations, "bbox")
        self.annotations = annotations
        self.ids = list(content.images)[:count]
        self.images = ImageFiles([folder / content.images[id]["file_name"] for id in self.ids])
        self.categories = {category["name"]: category["id"] for category in content.categories}

    def ap(self, found: Findings) -> dict[str, float]:
        """AP of boxes, and of masks or keypoints."""
        names = found.categories.names
        results = [
            {**r, "image_id": self.ids[r["image_id"]], "category_id": self.categories[names[r["category_id"]]]}
            for r in found.results
            if names[r["category_id"]] in self.categories
        ]
        tasks = dict.fromkeys(["bbox", found.task])
        return {task: evaluate_results(self.annotations, results, task, self.ids)["AP"] for task in tasks}


def variants(weights: Path, image: Any, calibration: Path | None) -> Iterator[tuple[str, Any]]:
    """The dense detector in every form whose accuracy may differ, with its name."""
    dense = load_detector(weights).eval()
    for share in SIZES:
        yield f"images of {share:.0%}", set_levers(dense, dense, share, 0)
    for count in PROPOSALS if "rpn_post_nms_top_n_test" in read_settings(dense) else ():
        yield f"{count} proposals", set_levers(dense, dense, 1.0, count)
    yield "bfloat16", optimize(dense, [image], "torch", "bfloat16")
    if calibration and importlib.util.find_spec("openvino"):
        photos = open_images(str(calibration), CALIBRATION)
        yield "int8", optimize(dense, photos, "openvino", "int8")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both losses of each detector, in percent, by what is found."""
    data = Labelled(args.annotations, args.images, args.image_count)
    dense, truth = reference_findings(load_detector(args.dense), data.images, min(SCORES))
    before = data.ap(dense)
    detectors = ((path.parent.name, load_detector(path)) for path in args.compressed)
    forms = variants(args.dense, data.images[0], args.calibration) if args.variants else ()
    rows = {
        name: losses(dense, truth, before, findings_of(detector, data.images, name), data)
        for source in (detectors, forms)
        for name, detector in source
    }
    return {"images": len(data.ids), "dense": before, "detectors": rows}


def losses(
    dense: Findings, truth: Findings, before: dict[str, float], found: Findings, data: Labelled
) -> dict[str, Any]:
    after = data.ap(found)
    measured = {score: agreement_of(dense, found, score, truth=truth).tasks for score in SCORES}
    alone = {score: agreement_of(dense, found, score, resamples=2).tasks for score in SCORES}
    return {
        task: {
            "AP": after[task],
            "lost": 100 * (before[task] - after[task]) / before[task],
            "disagreement": {score: 100 - tasks[task].metrics["AP"] for score, tasks in measured.items()},
            "disagreement_75": {score: 100 - tasks[task].metrics["AP75"] for score, tasks in measured.items()},
            "alone": {score: 100 - tasks[task].metrics["AP"] for score, tasks in alone.items()},
            "agreement_interval": {score: tasks[task].interval for score, tasks in measured.items()},
        }
        for task in after
    }


def points(
    results: dict[str, Any], score: float, measure: str = "disagreement"
) -> dict[str, list[tuple[str, float, float]]]:
    """By what is found: whose, 100 - agreement and what is lost of AP, in percent."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for name, result in results.items():
        for detector, tasks in result["detectors"].items():
            for task, row in tasks.items():
                point = (f"{name}, {detector}", row[measure][str(score)], row["lost"])
                found.setdefault(task, []).append(point)
    return found


def plot(results: dict[str, Any]) -> None:
    """A panel a score, a colour a kind of finding, a point a detector."""
    figure = Figure(figsize=(4 * len(SCORES), 4), layout="constrained")
    panels = figure.subplots(1, len(SCORES), sharex=True, sharey=True)
    for axes, score in zip(panels, SCORES, strict=True):
        axes.axline((0, 0), slope=1, color="0.6", linewidth=1)
        for task, found in points(results, score).items():
            _, x, y = zip(*found, strict=True)
            axes.plot(x, y, "o", markersize=5, alpha=0.8, color=f"C{[*FINDINGS].index(task)}", label=FINDINGS[task])
        axes.set_title(f"findings of the dense one from {score} on", fontsize=10)
        axes.set_xlabel("100 - agreement")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("lost of the dense one's AP, %")
    panels[0].legend(frameon=False)
    save_figure(PLOT, figure)


def tables(results: dict[str, Any]) -> list[str]:
    """A row a score: how alike both are; then a row a detector."""
    lines = ["| 100 - | score | of | points | Pearson | Spearman | mean difference | largest difference |",
             "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |"]  # fmt: skip
    for measure, score in ((measure, score) for measure in MEASURES for score in SCORES):
        found = points(results, score, measure)
        every = [point for task in found.values() for point in task]
        for title, chosen in {"all": every, **{FINDINGS[task]: found[task] for task in found}}.items():
            lines.append(f"| {MEASURES[measure]} | {score} | {title} | {len(chosen)} | {likeness(chosen)} |")
    heads = " | ".join(f"100 - {name}, {SCORE}" for name in MEASURES.values())
    columns = len(MEASURES)
    lines += ["", f"| | | AP | lost of AP, % | {heads} |", "| --- | --- |" + " ---: |" * (2 + columns)]
    for name, result in results.items():
        for task, ap in result["dense"].items():
            lines.append(
                f"| {name}, dense, {result['images']} images | {FINDINGS[task]} | {ap:.1f} |" + " |" * (1 + columns)
            )
        for detector, tasks in result["detectors"].items():
            for task, row in tasks.items():
                cells = " | ".join(f"{row[measure][str(SCORE)]:.1f}" for measure in MEASURES)
                lines.append(
                    f"| {name}, {detector} | {FINDINGS[task]} | {row['AP']:.1f} | {row['lost']:.1f} | {cells} |"
                )
    return lines


def likeness(found: list[tuple[str, float, float]]) -> str:
    names, x, y = zip(*found, strict=True)
    differences = np.abs(np.subtract(x, y))
    far = int(differences.argmax())
    numbers = [pearsonr(x, y).statistic, spearmanr(x, y).statistic] if len(found) > 2 else [np.nan] * 2
    cells = [*(f"{number:.3f}" for number in numbers), f"{differences.mean():.1f}"]
    return " | ".join([*cells, f"{differences[far]:.1f} ({names[far]})"])


def write_page(results: dict[str, Any]) -> None:
    """docs/agreement.md below the mark, and the plot."""
    plot(results)
    text, _, _ = PAGE.read_text().partition(MARK)
    image = "![what is lost of AP against 100 - agreement](agreement/agreement.png)"
    PAGE.write_text("\n".join([text + MARK, *tables(results), "", image, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", help="what these detectors find")
    parser.add_argument("--dense", type=Path, help="the weights that the others were made from")
    parser.add_argument("--compressed", type=Path, nargs="*", default=[], help="weights, called by their folders")
    parser.add_argument("--annotations", type=Path, help="a JSON in COCO's format")
    parser.add_argument("--images", type=Path, help="the folder of its images")
    parser.add_argument("--image-count", type=int, help="the first so many of them (default: all)")
    parser.add_argument("--variants", action="store_true", help="also the dense one in other forms")
    parser.add_argument("--calibration", type=Path, help="a folder of other photos, for int8")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    args = parser.parse_args()
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if not args.draw:
        if not all((args.name, args.dense, args.annotations, args.images)):
            parser.error("--name, --dense, --annotations and --images are needed")
        write_json(RESULT, results | {args.name: measure(args)}, indent=1)
    write_page(json.loads(RESULT.read_text()))


if __name__ == "__main__":
    main()
