"""Writes the report, one HTML page on what became of a detector, beside the file that was made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from norton_det.analysis.machine import describe_machine
from norton_det.data.images import LONGEST_SHOWN, ImageFiles, read_photo
from norton_det.data.reading import FINDINGS
from norton_det.evaluation.agreement import format_points
from norton_det.files import atomic_path
from norton_det.report.figures import plot_choices
from norton_det.report.page import Fact, Section, facts, note, pictures, plots, render, table
from norton_det.report.pictures import Pair, data_uri
from norton_det.shrink.choosing import Deadline, Option, front
from norton_det.shrink.family import Family
from norton_det.shrink.instruments import LOOKED_AT
from norton_det.shrink.levers import Choice
from norton_det.shrink.quantising import Int8Report
from norton_det.shrink.shrinking import Result
from norton_det.shrink.telling import int8_cost, matching_score, speed
from norton_det.shrink.workshop import Made
from norton_det.visualization.draw import draw_predictions

PICTURES = 12
CONFIDENCE = 0.5
METRICS = {
    "AP50": "at IoU 0.5",
    "AP75": "at 0.75",
    "APs": "small objects",
    "APm": "medium ones",
    "APl": "large ones",
}
"""What the page calls the figures of agreement."""


@torch.inference_mode()
def write_page(path: Path, name: str, result: Result, photos: ImageFiles, dense: Any, small: Any) -> None:
    """Write the page on a file of a name; `dense` and `small`, called like torchvision's detectors, show what they
    find on the held-back photos."""
    choice = result.after.option.choice
    sections = [
        Section("Before and after", _before_and_after(result), "", wide=True),
        Section("What was lost", _lost(result.after), "", wide=True),
        Section("All that was considered", _considered(result), "", wide=True),
        Section("Plans", _plans(result.family, result.made), "", wide=True),
        Section("int8", _int8(result.int8, choice) if result.int8 else "", "norton-det shrink --output NAME.xml"),
        Section("Photos", _photos(result, photos, dense, small), "", wide=True),
    ]
    with atomic_path(path) as temporary:
        title = f"{name}: {result.after.option.milliseconds:.3g} ms an image"
        asked = f"asked for: {result.goal}; chosen: {choice}"
        temporary.write_text(render(title, asked, sections), encoding="utf-8")


def _before_and_after(result: Result) -> str:
    before, after = result.before, result.after
    low, high = after.interval
    times = result.shipped / after.option.milliseconds
    told = "" if result.is_met else note(f"{result.goal} is not reached: this is the nearest that was found.")
    machine = note(f"{speed(result)}. On {describe_machine(torch.device('cpu'))}.")
    moods = note(
        "One reference call was timed beside each detector, to take the machine's other load off the times: it took "
        f"{min(result.moods):.0%} to {max(result.moods):.0%} of its typical time. Far above 100%, the machine was "
        "busy with something else."
    )
    return (
        told
        + facts(
            [
                Fact("as fast as shipped", f"{times:.1f}x", f"torch: {result.shipped:.3g} ms"),
                _fact("milliseconds an image", before, after, lambda made: f"{made.option.milliseconds:.3g}"),
                _fact("p95", before, after, lambda made: f"{made.p95:.3g}"),
                Fact("agreement", f"{after.option.agreement:.1f}", f"95 %: {low:.1f} to {high:.1f}"),
                _fact("parameters", before, after, lambda made: f"{made.parameters / 1e6:.3g} M"),
                _fact("MACs", before, after, lambda made: f"{made.macs / 1e9:.3g} G"),
                _fact("file", before, after, lambda made: f"{made.bytes / 2**20:.3g} MiB"),
            ]
        )
        + machine
        + moods
    )


def _lost(after: Made) -> str:
    """Return tables of what the small detector finds as the dense one does, in all and by category."""
    told = note(
        "Agreement is AP where what the dense detector is sure of is taken as the truth; 100 is what that detector "
        "itself reaches. Most of it asks for boxes that fit closely; at an IoU of 0.5 a rough one will do, which is "
        "often nearer to what matters. Scores are not the dense detector's: "
        f"{matching_score(after)}."
    )
    columns = ["", "agreement", *(label for label in METRICS.values())]
    rows = [
        [FINDINGS[task], *(format_points(values.get(name)) for name in ("AP", *METRICS))]
        for task, values in after.metrics.items()
    ]
    names = dict.fromkeys(name for values in after.by_category.values() for name in values)
    categories = [
        [name, *(format_points(values.get(name)) for values in after.by_category.values())] for name in names
    ]
    of_categories = table(["category", *(FINDINGS[task] for task in after.by_category)], categories)
    return told + table(columns, rows) + of_categories


def _fact(label: str, before: Made, after: Made, told: Any) -> Fact:
    return Fact(label, told(after), f"dense: {told(before)}")


def _considered(result: Result) -> str:
    points = {
        "considered": _points(result.considered),
        "made": _points(result.made),
        "chosen": _points([result.after.option]),
    }
    deadline = result.goal.milliseconds if isinstance(result.goal, Deadline) else None
    drawing = plot_choices(points, _points(front(result.considered)), "agreement", deadline)
    rows = [
        [str(option.choice), f"{option.milliseconds:.1f}", f"{option.agreement:.1f}"]
        for option in sorted(result.made, key=lambda option: option.milliseconds)
    ]
    told = table(["made and measured", "ms", "agreement"], rows, str(result.after.option.choice))
    caption = f"{len(result.considered)} choices as predicted, {len(result.made)} as measured"
    return plots((drawing, caption)) + told


def _points(options: Sequence[Option]) -> list[tuple[float, float]]:
    return [(option.milliseconds, option.agreement) for option in options]


def _plans(family: Family, made: Sequence[Option]) -> str:
    """Return a table of the plans: what each leaves out, and for which sizes of images files were made of it."""
    sizes = {name: [f"{o.choice.size:.0%}" for o in made if o.choice.plan == name] for name in family.plans}
    rows = [
        [
            name,
            f"{family.errors[name]:.3f}",
            ", ".join(plan.dropped) or "-",
            ", ".join(f"{part} {rank}" for part, rank in plan.parts.items()) or "-",
            ", ".join(dict.fromkeys(sizes[name])) or "-",
        ]
        for name, plan in family.plans.items()
    ]
    told = "The best plan for each share of MACs, and the sizes of images for which files were made of it."
    return note(told) + table(
        ["MACs", "predicted error", "blocks left out", "ranks of parts", "made for images of"], rows
    )


def _int8(report: Int8Report, choice: Choice) -> str:
    """Return a table of what int8 costs the chosen detector, or the dense one if the chosen is not in int8, and what
    each part shows that is left in floating point."""
    base = report.floating
    shown: Mapping[str, Any] = {
        "floating point": base,
        **{f"int8, {preset}": seen for preset, seen in report.presets.items()},
        **{f"{part} in floating point": seen for part, seen in report.parts.items()},
        "as chosen": report.chosen,
    }
    rows = [[name, f"{seen.time / base.time:.2f}", f"{seen.agreement:.1f}"] for name, seen in shown.items()]
    whose = "the chosen detector" if choice.precision == "int8" else "the dense detector"
    told = f"Of {whose}, on at most {LOOKED_AT} photos: {int8_cost(report)}."
    return note(told) + table(["", "time", "agreement"], rows, "as chosen")


def _photos(result: Result, photos: ImageFiles, dense: Any, small: Any) -> str:
    """Return the photos that agree least, the worst first, dense beside small."""
    order = sorted(range(len(photos)), key=result.after.by_image.__getitem__)[:PICTURES]
    pairs = []
    for number in order:
        photo, _ = read_photo(photos.paths[number], LONGEST_SHOWN)
        how = small.categories, CONFIDENCE, small.keypoints
        drawn = [data_uri(draw_predictions(photo, run([photo / 255])[0], *how)) for run in (dense, small)]
        pairs.append(Pair(f"{photos.paths[number].name}: {result.after.by_image[number]:.0f}", *drawn))
    told = (
        f"Photos on which nothing was fitted, with findings of a score of at least {CONFIDENCE:g}; those that agree "
        "least come first. The number is F1 in percent: 100 where both find the same objects."
    )
    return note(told) + pictures(pairs, ("dense", "small"))
