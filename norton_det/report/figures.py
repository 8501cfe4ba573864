"""Draws the report's plots as SVG that takes its text's font and colour from the page around it."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from norton_det.analysis.complexity import Count
from norton_det.analysis.latency import Latency
from norton_det.compression.compress import LayerReport, PartReport
from norton_det.evaluation.coco import PrecisionRecall

BEFORE, AFTER = "#9aa5b1", "#2f81d8"
"""Colours of what was there before, or is compared, and of the run that is told."""
_COLOURS = ("#e0803a", "#3aa17e", "#9068be", "#d1495b", "#c2a12b", "#4cb3c9", "#a1667a", "#7a8f3c")
_INK, _GRID = "#010203", "#040506"  # `_svg` replaces them by the page's colours
_WIDTH = 4.6  # inches; 72 units each
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "norton_det",
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "axes.edgecolor": _GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "axes.prop_cycle": f"cycler('color', {[AFTER, *_COLOURS]})",
}
_styled = rc_context(_STYLE)


def short_number(value: float) -> str:
    """Format a number with three digits, or whole if it has more."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


@_styled
def plot_steps(curves: Mapping[str, Sequence[tuple[float, float]]], label: str) -> str:
    """Draw curves over the iterations of training, by name; the last one is emphasised."""
    figure, axes = _axes(2.9)
    for (name, points), colour in zip(curves.items(), _colours(len(curves)), strict=True):
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=2.4 if colour == AFTER else 1.4, label=name)
    axes.set_xlabel("iteration")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    if len(curves) > 1:
        _legend(figure, axes)
    return _svg(figure)


@_styled
def plot_categories(
    name: str, values: Mapping[str, float], others: Mapping[str, Mapping[str, float | None]], highest: float
) -> str:
    """Draw AP of categories, from top to bottom: a bar for the run `name`, a dot for each of the others.

    `highest` is the largest AP that the axis has to show.
    """
    categories = list(values)
    figure, axes = _axes(0.8 + 0.26 * len(categories))
    bars = axes.barh(categories, list(values.values()), 0.62, color=AFTER, label=name)
    axes.bar_label(bars, fmt="%.0f", padding=4, fontsize=9.5)
    for (other, by_category), colour in zip(others.items(), _colours(len(others) + 1)[:-1], strict=True):
        points = [(by_category[c], c) for c in categories if by_category.get(c) is not None]
        if points:
            places, rows = zip(*points, strict=True)
            axes.scatter(places, rows, s=30, color=colour, edgecolor="white", linewidth=0.8, zorder=3, label=other)
    axes.set_xlabel("AP")
    axes.margins(y=0.01)
    axes.set_xlim(0, 1.1 * highest or 1)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    if others:
        _legend(figure, axes)
    return _svg(figure)


@_styled
def plot_precision_recall(curves: PrecisionRecall, measure: str) -> str:
    """Draw the mean precision at two thresholds of `measure` (IoU or OKS), with the categories behind it."""
    figure, axes = _axes(3.6)
    recall = np.linspace(0, 1, 101)
    named = len(curves.by_category) <= len(_COLOURS)
    for number, (name, precision) in enumerate(curves.by_category.items()):
        colour = _COLOURS[number] if named else BEFORE
        axes.plot(recall, precision, color=colour, linewidth=1.1, label=name if named else None)
    for (threshold, precision), style in zip(curves.mean.items(), ("-", "--"), strict=True):
        axes.plot(recall, precision, style, color=AFTER, linewidth=2.6, label=f"mean, {measure} {threshold}")
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    _legend(figure, axes)
    return _svg(figure)


@_styled
def plot_layers(layers: Sequence[LayerReport]) -> str:
    """Draw the filters of each layer before and after, and the NMSE of decomposed layers, in the order given."""
    figure = Figure(figsize=(_WIDTH, 4.4), layout="constrained")
    widths, errors = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    places = range(len(layers))
    widths.bar(places, [layer.shape[0] for layer in layers], 0.8, color=BEFORE, label="before")
    widths.bar(places, [layer.compressed_shape[0] for layer in layers], 0.8, color=AFTER, label="after")
    widths.set_yscale("log", base=2)
    widths.set_ylim(bottom=max(1, min(layer.compressed_shape[0] for layer in layers) / 2))
    widths.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    widths.set_ylabel("filters")
    errors.bar(places, [layer.nmse or 0 for layer in layers], 0.8, color=AFTER)
    errors.set_ylabel("NMSE")
    stages = [_stage(layer.name) for layer in layers]
    middles = {stage: np.mean([place for place in places if stages[place] == stage]) for stage in stages}
    errors.set_xticks(list(middles.values()), list(middles))
    errors.set_xlim(-0.6, len(layers) - 0.4)
    for axes in (widths, errors):
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False, axis="x")
    _legend(figure, widths)
    return _svg(figure)


@_styled
def plot_recovery(parts: Sequence[PartReport]) -> str:
    """Draw the error of each part before and after it was restored, from top to bottom in the order of the data."""
    figure, axes = _axes(0.9 + 0.22 * len(parts))
    names = [part.name for part in parts]
    before, after = [part.before for part in parts], [part.after for part in parts]
    axes.hlines(names, after, before, color=BEFORE, linewidth=2.5)
    axes.scatter(before, names, s=34, color=BEFORE, zorder=3, label="before")
    axes.scatter(after, names, s=34, color=AFTER, zorder=3, label="after")
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("relative error of the features")
    axes.grid(visible=False, axis="y")
    _legend(figure, axes)
    return _svg(figure)


@_styled
def plot_parts(models: Mapping[str, Mapping[str, Count]], value: str, unit: float, label: str) -> str:
    """Draw `value`, a field of Count, in units of `unit`, by part of the detector, with a bar for each model."""
    parts = list(dict.fromkeys(part for counts in models.values() for part in counts))
    rows: dict[str, dict[str, float]] = {part.replace("_", " "): {} for part in parts}
    for model, counts in models.items():
        for part, count in counts.items():
            rows[part.replace("_", " ")][model] = getattr(count, value) / unit
    return _bars(rows, label)


@_styled
def plot_latencies(treatments: Mapping[str, Mapping[str, Latency]]) -> str:
    """Draw median milliseconds by treatment: a bar for each model, with a line from 5th to 95th percentile."""
    medians = {name: {model: row.median for model, row in models.items()} for name, models in treatments.items()}
    spreads = {
        name: {model: (row.median - row.p5, row.p95 - row.median) for model, row in models.items()}
        for name, models in treatments.items()
    }
    return _bars(medians, "ms a call", spreads)


@_styled
def plot_pareto(runs: Mapping[str, tuple[float, float]], told: str) -> str:
    """Draw AP against milliseconds; a line joins the runs that no other beats in both, and `told` is emphasised."""
    figure, axes = _axes(3.4)
    best = -1.0
    frontier = []
    for latency, accuracy in sorted(runs.values(), key=lambda point: (point[0], -point[1])):
        if accuracy > best:
            best = accuracy
            frontier.append((latency, accuracy))
    axes.plot(*zip(*frontier, strict=True), color=BEFORE, linewidth=1.4, linestyle="--", zorder=1)
    for name, (latency, accuracy) in runs.items():
        axes.scatter(latency, accuracy, s=60, color=AFTER if name == told else BEFORE, zorder=3)
        axes.annotate(name, (latency, accuracy), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9.5)
    axes.set_xlabel("ms a call, median")
    axes.set_ylabel("AP")
    axes.margins(x=0.22, y=0.2)
    return _svg(figure)


@_styled
def plot_choices(
    points: Mapping[str, Sequence[tuple[float, float]]],
    front: Sequence[tuple[float, float]],
    label: str,
    deadline: float | None = None,
) -> str:
    """Draw `label` against milliseconds: groups of points by name, the last emphasised, a line through the best ones,
    the front, and one at the deadline."""
    figure, axes = _axes(3.6)
    axes.plot(*zip(*front, strict=True), color=BEFORE, linewidth=1.4, linestyle="--", zorder=1, label="best")
    if deadline is not None:
        axes.axvline(deadline, color=_INK, linewidth=1.0, linestyle=":", zorder=1, label="deadline")
    for number, ((name, group), colour) in enumerate(zip(points.items(), _colours(len(points)), strict=True)):
        axes.scatter(
            [x for x, _ in group],
            [y for _, y in group],
            s=8 + 26 * number,
            color=colour,
            zorder=2 + number,
            label=name,
        )
    axes.set_xlabel("ms an image")
    axes.set_ylabel(label)
    axes.set_xlim(left=0)
    _legend(figure, axes)
    return _svg(figure)


def _bars(
    rows: Mapping[str, Mapping[str, float]],
    label: str,
    spreads: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> str:
    """Draw horizontal bars: a cluster for each row, in it a bar for each model; `spreads` are its error bars."""
    models = list(dict.fromkeys(model for values in rows.values() for model in values))
    figure, axes = _axes(0.9 + 0.24 * len(rows) * (len(models) + 0.6))
    thickness = 0.82 / len(models)
    for number, (model, colour) in enumerate(zip(models, _colours(len(models)), strict=True)):
        places = [row + (number - (len(models) - 1) / 2) * thickness for row in range(len(rows))]
        values = [row.get(model, np.nan) for row in rows.values()]
        errors = np.array([row.get(model, (np.nan, np.nan)) for row in spreads.values()]).T if spreads else None
        bars = axes.barh(places, values, thickness * 0.9, xerr=errors, ecolor=_INK, color=colour, label=model)
        axes.bar_label(bars, fmt=short_number, padding=4, fontsize=9.5)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.margins(x=0.14, y=0.02)
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
    _legend(figure, axes)
    return _svg(figure)


def _colours(count: int) -> list[str]:
    """Return the colours of `count` models: the last is emphasised, the first is what it is compared with."""
    others = [BEFORE, *(_COLOURS[number % len(_COLOURS)] for number in range(count))]
    return [*others[: count - 1], AFTER]


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(3, len(labels)), handlelength=1.2)


def _stage(name: str) -> str:
    """Return the stage of a layer: layer1 to layer4 of the body, "other" for other parts, "" for the stem."""
    if name.startswith("layer"):
        return name.split(".")[0]
    return "" if name == "conv1" else "other"


def _svg(figure: Figure) -> str:
    """Return the figure as SVG for use in a page: without a file's header, ink and grid in the page's colours."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    opening, rest = re.search(r"<svg([^>]*)>(.*)", buffer.getvalue(), re.DOTALL).groups()  # type: ignore[union-attr]
    (view_box,) = re.findall(r'viewBox="[^"]*"', opening)
    drawing = re.sub(r' id="[\w.]+_\d+"', "", rest)
    return f"<svg {view_box}>{drawing}".replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
