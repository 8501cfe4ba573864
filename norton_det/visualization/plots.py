"""Plots measurements."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from norton_det.analysis.latency import Latency
from norton_det.files import atomic_path


def save_latency_plot(path: Path, groups: Mapping[str, Mapping[str, Latency]]) -> None:
    """Draw bars of the median latency in milliseconds: a cluster for each group, in it a bar for each model, with a
    line from the 5th to the 95th percentile."""
    figure = Figure(figsize=(1.5 + 2.2 * len(groups), 3.6), layout="constrained")
    axes = figure.subplots()
    models = list(next(iter(groups.values())))
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        latencies = [latencies[model] for latencies in groups.values()]
        positions = [group + (number - (len(models) - 1) / 2) * width for group in range(len(groups))]
        medians = [latency.median for latency in latencies]
        errors = [
            [latency.median - latency.p5 for latency in latencies],
            [latency.p95 - latency.median for latency in latencies],
        ]
        bars = axes.bar(positions, medians, width * 0.92, yerr=errors, capsize=3, label=model)
        axes.bar_label(bars, fmt=lambda ms: f"{ms:.{1 if ms < 100 else 0}f}", padding=3)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel("latency, ms a call (median)")
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(path, figure)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
