"""The page docs/without_labels.md and its plots, of what stands in docs/without_labels/: no measuring."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

from accuracy import TASKS
from deployment import TITLES
from matplotlib.figure import Figure

from norton_det.data.reading import FINDINGS
from norton_det.visualization.plots import save_figure

RESULTS = Path(__file__).parent.parent / "docs/without_labels"
OTHER_PARTS = {
    "images": "`norton-77` on images: {}",
    "sizes": "images of {}",
    "longer": "`norton-77` in {}",
    "deviation": "{}, by the criterion `deviation`",
    "fine-tuned, compressed": "fine-tuned with labels from compressed: {} of the schedule",
    "fine-tuned, restored": "fine-tuned with labels from restored: {} of the schedule",
}
RESTORED = ("recovered", "searched, recovered")
REAL_TASKS = """# Accuracy without labels

What a compressed detector keeps where nobody has labels: it is restored on a folder of photos, first part after part,
then as a whole, the dense detector its teacher. Real photos first, drawn ones behind.

## Real photos

By `python benchmarks/real_tasks.py --data DATA --weights resnet50_half_width.pth`: detectors of half width on photos
of about 320x430 pixels, trained dense with labels from a body that knew photos, then compressed at rank 1 and
restored on {images} training images, of which no label is read, in so many *steps* of the whole; AP / AP50 on the
validation images, and in brackets the share of the dense detector's AP. Parameters and MACs are the whole detector's.
*Seconds* are those of compression and recovery, beside other work, on {machine}.
Where there are several seeds, their mean. Rows *by Adam* are from before matrices were trained by Muon, at a rate
four times as high; those of them with 400 steps from before what is linear in a part was solved in closed form.
"""
DRAWN = """## Drawn images

Made by `python benchmarks/without_labels.py`. The quickstart's detectors, a quarter of the width, trained dense on
`shapes`; their bodies compressed by the paper's plans at rank 1 (or as said), then measured at once: AP of boxes,
masks and keypoints on the 200 validation images. No label is read.

*published* is the pruning of the published code; *plain* is ours, with nothing done afterwards; *BatchNorm* has its
statistics estimated anew on 200 training images; *recovered* is restored on them part by part alone,
240 steps each;
*searched, recovered* is so too, by the plan that `search_plan` finds for the same MACs.
*Seconds* is what *recovered* took on one core that other work may have shared.
"""
LEFT = """What recovery leaves: the share of energy by which the pyramid's levels differ from the dense detector's,
mean over the levels, on the validation images. It tells plans apart more finely than the AP of 200 images does.
"""
FINE_TUNING = """### Then fine-tuned

By `python benchmarks/without_labels.py --fine-tuning`: Faster R-CNN, fine-tuned with labels from what stands above,
for a share of the dense detector's schedule, each share a schedule of its own. The dense one has not converged after
its own: where more training ends above it, that is the training's doing.
"""
FULL_SIZE = """### At full size

Faster R-CNN of full width on images of 800x1066, started from ImageNet's filters (stem to layer3; layer4 from random
ones) and trained dense on `shapes` for four epochs, on one {machine}, then compressed: what it learnt in full is
harder to keep. By

{commands}
"""
REAL = """### Real filters, real images

By `python benchmarks/real_recovery.py --weights resnet50.pth --train coco/train2017 --test coco/val2017 --steps
{steps}`: a ResNet-50 trained on ImageNet, from the stem to layer3 (its 3x3
convolutions decomposed, then pruned where a plan is named), restored on {images} images of COCO's training set with
{steps} gradient steps a part, measured on 96 of its validation set: the relative error of the outputs of
layer1, layer2 and layer3.
"""


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


def real_tasks(tasks: dict[str, Any]) -> list[str]:
    """A table a task and kind of finding, a row a plan; then those of images, criteria and fine-tuning."""
    lines = [REAL_TASKS.format(**tasks["how"])] if tasks else []
    for task, parts in tasks.items():
        if task == "how":
            continue
        dense = parts["dense"]["dense"]["0"]
        lines.append(f"### {task.capitalize()}\n")
        for kind in (name for name in FINDINGS if name in dense):
            lines += plan_table(kind, dense, parts)
        lines += curve_table(dense, parts)
    return lines


def plan_table(kind: str, dense: dict[str, Any], parts: dict[str, Any]) -> list[str]:
    lines = [
        f"| {FINDINGS[kind]} | parameters, M | GMACs | compressed | restored | steps | seconds |",
        "| --- |" + " ---: |" * 6,
        f"| dense, {dense['epochs']} epochs | {sizes(dense)} | | {ap(dense[kind])} | | |",
    ]
    for name, seeds in parts.get("restored", {}).items():
        row = mean_of(seeds.values())
        start = parts["compressed"][name]["0"]
        lines.append(
            f"| {name} | {sizes(row)} | {ap(start[kind])} | {ap(row[kind], dense[kind])} | {row['steps']:.0f} "
            f"| {row['seconds']:.0f} |"
        )
    return [*lines, ""]


def curve_table(dense: dict[str, Any], parts: dict[str, Any]) -> list[str]:
    """Everything that is measured beside the plans, a row each."""
    lines = []
    for part, title in OTHER_PARTS.items():
        for name, seeds in parts.get(part, {}).items():
            row = mean_of(seeds.values())
            found = " | ".join(ap(row[kind], dense[kind]) for kind in FINDINGS if kind in dense)
            lines.append(f"| {title.format(name)} | {found} |")
    if not lines:
        return []
    kinds = [FINDINGS[kind] for kind in FINDINGS if kind in dense]
    return [f"| | {' | '.join(kinds)} |", "| --- |" + " ---: |" * len(kinds), *lines, ""]


def mean_of(rows: Any) -> dict[str, Any]:
    """The rows of several seeds as one."""
    first, *_ = rows = list(rows)
    return {
        key: mean_of([row[key] for row in rows]) if isinstance(value, dict) else mean(row[key] for row in rows)
        for key, value in first.items()
    }


def sizes(row: dict[str, Any]) -> str:
    return f"{row['parameters'] / 1e6:.2f} | {row['macs'] / 1e9:.2f}"


def ap(found: dict[str, float], dense: dict[str, float] | None = None) -> str:
    share = f" ({found['AP'] / dense['AP']:.1%})" if dense else ""
    return f"{found['AP']:.1f} / {found['AP50']:.1f}{share}"


def what_is_left(results: dict[str, Any]) -> list[str]:
    """The table of the pyramid's errors, a row a plan."""
    titles = [f"{TITLES[kind]}, {way}" for kind in results for way in RESTORED]
    lines = [LEFT, f"| | {' | '.join(titles)} |", "| --- |" + " ---: |" * len(titles)]
    for name in by_plan(next(iter(results.values()))):
        rows = [result[name]["ways"][way] for result in results.values() for way in RESTORED]
        lines.append(f"| {name} | {' | '.join(format(row['pyramid'], '.3f') for row in rows)} |")
    return [*lines, ""]


def write_page() -> None:
    """docs/without_labels.md and its plots, of what was measured."""
    results = {kind: found for kind in TASKS if (found := read(kind))}
    lines = [*real_tasks(read("real_tasks") or {}), DRAWN]
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
