"""Writes the report, one HTML page on what became of a detector, beside the file that was made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from norton_det.data.images import LONGEST_SHOWN, ImageFiles, read_photo
from norton_det.files import atomic_path
from norton_det.report.figures import plot_choices
from norton_det.report.page import Fact, Section, facts, note, pictures, plots, render, table
from norton_det.report.pictures import Pair, data_uri
from norton_det.shrink.choosing import Option, front
from norton_det.shrink.family import Family
from norton_det.shrink.levers import Choice
from norton_det.shrink.quantising import Int8Report
from norton_det.shrink.shrinking import Result
from norton_det.shrink.workshop import Made
from norton_det.visualization.draw import draw_predictions

PICTURES = 12
CONFIDENCE = 0.5


@torch.inference_mode()
def write_page(path: Path, result: Result, photos: ImageFiles, dense: Any, small: Any) -> None:
    """Write the page; `dense` and `small` are called on the held-back photos like torchvision's detectors."""
    choice = result.after.option.choice
    sections = [
        Section("Before and after", _before_and_after(result), "", wide=True),
        Section("All that was considered", _considered(result), "", wide=True),
        Section("Plans", _plans(result.family, result.made), "", wide=True),
        Section("int8", _int8(result.int8, choice) if result.int8 else "", "norton-det shrink --output NAME.xml"),
        Section("Photos", _photos(result, photos, dense, small), "", wide=True),
    ]
    with atomic_path(path) as temporary:
        temporary.write_text(render(path.stem, f"{result.goal}: {choice}", sections), encoding="utf-8")


def _before_and_after(result: Result) -> str:
    before, after = result.before, result.after
    low, high = after.interval
    told = "" if result.is_met else note(f"{result.goal} is not reached: this is the nearest that was found.")
    moods = note(
        "One reference call was timed beside each detector, to take the machine's other load off the times: it took "
        f"{min(result.moods):.0%} to {max(result.moods):.0%} of its typical time. Far above 100%, the machine was "
        "busy with something else."
    )
    return (
        told
        + facts(
            [
                _fact("milliseconds an image", before, after, lambda made: f"{made.option.milliseconds:.3g}"),
                _fact("p95", before, after, lambda made: f"{made.p95:.3g}"),
                Fact("agreement", f"{after.option.agreement:.1f}", f"95 %: {low:.1f} to {high:.1f}"),
                _fact("parameters", before, after, lambda made: f"{made.parameters / 1e6:.3g} M"),
                _fact("MACs", before, after, lambda made: f"{made.macs / 1e9:.3g} G"),
                _fact("file", before, after, lambda made: f"{made.bytes / 2**20:.3g} MiB"),
            ]
        )
        + moods
    )


def _fact(label: str, before: Made, after: Made, told: Any) -> Fact:
    return Fact(label, told(after), f"dense: {told(before)}")


def _considered(result: Result) -> str:
    points = {
        "considered": _points(result.considered),
        "made": _points(result.made),
        "chosen": _points([result.after.option]),
    }
    drawing = plot_choices(points, _points(front(result.considered)), "agreement")
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
    left = ", ".join(report.recipe.in_float) or "nothing"
    whose = "the chosen detector" if choice.precision == "int8" else "the dense detector"
    told = f"int8 costs {whose} {base.agreement - report.chosen.agreement:.1f} points; in floating point: {left}."
    return note(told) + table(["", "time", "agreement"], rows, "as chosen")


def _photos(result: Result, photos: ImageFiles, dense: Any, small: Any) -> str:
    """Return the photos that agree least, the worst first, dense beside small."""
    order = sorted(range(len(photos)), key=result.after.by_image.__getitem__)[:PICTURES]
    pairs = []
    for number in order:
        photo, _ = read_photo(photos.paths[number], LONGEST_SHOWN)
        how = small.categories, CONFIDENCE, small.keypoints
        drawn = [data_uri(draw_predictions(photo, run([photo / 255])[0], *how)) for run in (dense, small)]
        pairs.append(Pair(f"{photos.paths[number].name} ({result.after.by_image[number]:.0f})", *drawn))
    told = "Photos on which nothing was fitted, those that agree least first; F1 is in brackets."
    return note(told) + pictures(pairs, ("dense", "small"))
