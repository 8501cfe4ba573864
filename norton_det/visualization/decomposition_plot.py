"""Plots decompositions of convolutions against each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from norton_det.visualization.plots import save_figure

_COSTS = {"parameters": "parameters", "macs": "MACs", "latency_ms": "latency"}
_MARKERS = "osD^v<>"


def save_decomposition_plot(path: Path, layers: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draw a row of panels for each layer: NMSE against parameters, MACs and latency, a curve for each method.

    Args:
        path: the PNG file.
        layers: the measurements of each layer by its title: method, nmse, parameters, macs, latency_ms. Costs are
            drawn as shares of those of the method "dense", which must be there; the first of the others is
            emphasised. If costs come near the dense layer's, a dotted line marks the latter.
    """
    figure = Figure(figsize=(11, 0.9 + 2.8 * len(layers)), layout="constrained")
    grid = figure.subplots(len(layers), len(_COSTS), squeeze=False, sharey="row")
    for row, (title, measurements) in zip(grid, layers.items(), strict=True):
        dense = next(m for m in measurements if m["method"] == "dense")
        methods = list(dict.fromkeys(m["method"] for m in measurements if m["method"] != "dense"))
        for axes, (cost, label) in zip(row, _COSTS.items(), strict=True):
            for number, method in enumerate(methods):
                points = [m for m in measurements if m["method"] == method]
                axes.plot(
                    [100 * m[cost] / dense[cost] for m in points],
                    [m["nmse"] for m in points],
                    marker=_MARKERS[number % len(_MARKERS)],
                    markersize=5,
                    linewidth=2.4 if number == 0 else 1.3,
                    zorder=3 if number == 0 else 2,
                    label=method,
                )
            highest = max(100 * m[cost] / dense[cost] for m in measurements if m["method"] != "dense")
            axes.set_xlim(0, 1.08 * highest)
            if highest > 90:
                axes.axvline(100, color="0.5", linestyle=":", linewidth=1)
            axes.set_xlabel(f"{label}, share of the dense layer's")
            axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
            axes.grid(color="0.92")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(f"{title}\nNMSE")
        row[0].set_ylim(bottom=0)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    save_figure(path, figure)
