"""What compression costs each kind of detector on the drawn dataset, and what recovery and fine-tuning bring back.

    python benchmarks/kinds.py [--only retinanet fcos-resnet18] [--folder output/kinds]

Trains every kind at the quickstart's size on a ResNet-50, three of them also on a ResNet-18 and a ResNet-101, there
for half as long; compresses each by the shares of norton-59 at rank 1, on other bodies than a ResNet-50 every part of
it; restores it without a label; fine-tunes that. Writes docs/benchmarks/kinds.json and the page docs/kinds.md. What
stands in the folder already is not made again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from norton_det.analysis.complexity import count_detector, total
from norton_det.api import load_detector
from norton_det.cli.main import main as norton_det
from norton_det.files import atomic_path, write_json
from norton_det.models.channels import STEM, read_body
from norton_det.models.parts import PARTS
from norton_det.models.structure import KINDS

DOCS = Path(__file__).parent.parent / "docs"
RATE, BOX_RANK = 0.28, 32
EPOCHS, TUNED = 4.2, 0.75
OTHER_BODIES = [(kind, body) for body in ("resnet18", "resnet101") for kind in ("faster_rcnn", "retinanet", "fcos")]
SIZES = ["model.mask_channels=64", "model.keypoint_channels=64", "data.workers=0"]
STAGES = ("dense", "compressed", "recovered", "fine-tuned")


def run(*words: object) -> None:
    print("$ norton-det", *words, flush=True)
    if norton_det([str(word) for word in words]):
        raise SystemExit(2)


def train(folder: Path, *words: str) -> Path:
    """The weights of a run, and beside them its evaluation."""
    if not (folder / "evaluation/metrics.json").exists():
        run("train", "--config", "quickstart.yaml", f"output_dir={folder}", *SIZES, *words)
    return folder / "model_final.pth"


def write_plan(dense: Path, is_whole: bool) -> Path:
    """The plan file of a detector: norton-59's shares for whatever blocks its body has."""
    body = read_body(load_detector(dense))
    first = 1 if STEM in body.groups else 2
    rates = [0.0] * first + [RATE] * (len(body.stages) + len(body.blocks) - first)
    plan: dict[str, Any] = {"notation": f"[{', '.join(map(str, rates))}]", "rank": 1}
    if is_whole:
        plan["parts"] = {part: BOX_RANK if part == "box_head" else 1 for part in PARTS}
    path = dense.parent.parent / "plan.json"
    write_json(path, plan)
    return path


def measure(kind: str, body: str, folder: Path, words: list[str]) -> dict[str, dict[str, float]]:
    """AP, AP50 and size of a detector in its four stages."""
    epochs = EPOCHS if body == "resnet50" else EPOCHS / 2
    model = [f"model.detector={kind}", f"model.body={body}", f"train.epochs={epochs}", *words]
    files = {"dense": train(folder / "dense", "model.plan=none", *model)}
    plan = write_plan(files["dense"], is_whole=body != "resnet50")
    for stage, images in (("compressed", []), ("recovered", ["--images", "shapes_train"])):
        files[stage] = folder / stage / "model_final.pth"
        if not files[stage].exists():
            run("compress", "--weights", files["dense"], "--plan", plan, *images, "--steps", 120,
                "--output", files[stage])  # fmt: skip
        train(folder / stage, "--eval-only", f"model.weights={files[stage]}", *model)
    files["fine-tuned"] = train(
        folder / "fine-tuned", f"model.weights={files['recovered']}", *model, f"train.epochs={TUNED}"
    )
    return {stage: read_row(folder / stage, files[stage]) for stage in STAGES}


def read_row(folder: Path, weights: Path) -> dict[str, float]:
    metrics = json.loads((folder / "evaluation/metrics.json").read_text())
    own = metrics[next((task for task in ("segm", "keypoints") if task in metrics), "bbox")]
    counts = total(count_detector(load_detector(weights), 192, 256))
    return {"AP": own["AP"], "AP50": own["AP50"], "parameters": counts.parameters, "macs": counts.macs}


def write_page(rows: dict[str, dict[str, dict[str, float]]]) -> None:
    lines = [
        "# Every kind of detector, compressed",
        "",
        f"Each is trained at the quickstart's size on the drawn dataset for {EPOCHS} epochs (on other bodies than a"
        f" ResNet-50 for {EPOCHS / 2}: far from all that it could learn), compressed by the shares of `norton-59` at"
        " rank 1 (on a ResNet-50 the body, on the other bodies every part), restored on 200 images without labels,"
        f" and then fine-tuned with labels for {TUNED} more epochs. AP / AP50 of masks and keypoints where a"
        " detector has them, else of boxes; sizes are those of the dense and of the compressed detector. All from one"
        " command:",
        "",
        "    python benchmarks/kinds.py",
        "",
        "| detector | body | parameters, M | GMACs | dense | compressed | recovered | fine-tuned |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, stages in rows.items():
        kind, _, body = name.partition("-")
        sizes = [
            " -> ".join(f"{stages[stage][key] / unit:.2f}" for stage in ("dense", "compressed"))
            for key, unit in (("parameters", 1e6), ("macs", 1e9))
        ]
        found = [f"{stages[stage]['AP']:.1f} / {stages[stage]['AP50']:.1f}" for stage in STAGES]
        lines.append("| " + " | ".join([f"`{kind}`", body or "resnet50", *sizes, *found]) + " |")
    with atomic_path(DOCS / "kinds.md") as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = {kind: (kind, "resnet50") for kind in KINDS} | {
        f"{kind}-{body}": (kind, body) for kind, body in OTHER_BODIES
    }
    parser.add_argument("--only", nargs="+", choices=cases, default=list(cases), metavar="CASE")
    parser.add_argument("--folder", type=Path, default=Path("output/kinds"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of every training run")
    args = parser.parse_args()
    result = DOCS / "benchmarks/kinds.json"
    rows = json.loads(result.read_text()) if result.exists() else {}
    for name in args.only:
        rows[name] = measure(*cases[name], args.folder / name, args.overrides)
        rows = {case: rows[case] for case in cases if case in rows}
        write_json(result, rows, indent=1)
        write_page(rows)


if __name__ == "__main__":
    main()
