"""Plots of measurements: what is drawn where, read off the figure before it becomes pixels."""

import pytest

from norton_det.analysis.latency import Latency
from norton_det.visualization import decomposition_plot, plots


def drawn(module, monkeypatch, save, content):
    figures = []
    monkeypatch.setattr(module, "save_figure", lambda path, figure: figures.append(figure))
    save("any.png", content)
    return figures[0].axes


def measurement(method, nmse, parameters, macs, latency_ms):
    return {"method": method, "nmse": nmse, "parameters": parameters, "macs": macs, "latency_ms": latency_ms}


def test_decompositions_stand_at_their_share_of_the_dense_costs(monkeypatch):
    rows = [
        measurement("dense", 0.0, 100, 1000, 2.0),
        measurement("ours", 0.5, 10, 200, 0.6),
        measurement("ours", 0.25, 20, 400, 1.2),
        measurement("svd", 0.75, 12, 300, 3.0),
    ]
    save = decomposition_plot.save_decomposition_plot
    panels = drawn(decomposition_plot, monkeypatch, save, {"layer1.1.conv2": rows})
    for axes, ours, svd in zip(panels, ([10, 20], [20, 40], [30, 60]), ([12], [30], [150]), strict=True):
        first, second = axes.lines[:2]
        assert (list(first.get_xdata()), list(first.get_ydata())) == (pytest.approx(ours), [0.5, 0.25])
        assert (list(second.get_xdata()), list(second.get_ydata())) == (pytest.approx(svd), [0.75])
    assert [len(axes.lines) for axes in panels] == [2, 2, 3]  # a line at the dense layer's, where a cost reaches it


def test_bars_are_medians_with_their_percentiles(monkeypatch):
    groups = {
        "torch": {"dense": Latency(10, 9, 13, 5), "small": Latency(4, 3, 6, 5)},
        "openvino": {"dense": Latency(5, 4, 7, 5), "small": Latency(2, 1, 5, 5)},
    }
    [axes] = drawn(plots, monkeypatch, plots.save_latency_plot, groups)
    bars = [container for container in axes.containers if hasattr(container, "patches")]
    assert [[bar.get_height() for bar in container] for container in bars] == [[10, 5], [4, 2]]
    segments = [line.get_segments() for container in bars for line in container.errorbar[2]]
    assert [[(low[1], high[1]) for low, high in ends] for ends in segments] == [[(9, 13), (4, 7)], [(3, 6), (1, 5)]]
