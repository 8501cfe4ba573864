"""The report's plots: where the numbers stand, read off the figure before it becomes SVG."""

import pytest

from norton_det.analysis.latency import Latency
from norton_det.compression.compress import LayerReport, PartReport
from norton_det.report import figures
from norton_det.report.figures import AFTER, BEFORE


@pytest.fixture(autouse=True)
def figures_stay_figures(monkeypatch):
    monkeypatch.setattr(figures, "_svg", lambda figure: figure)


def bars(axes):
    """By label the bars of a plot."""
    return {container.get_label(): container for container in axes.containers if hasattr(container, "patches")}


def test_a_latency_is_a_bar_with_its_percentiles_and_the_last_model_is_emphasised():
    rows = {"torch": {"dense": Latency(10, 9, 12, 5), "small": Latency(4, 3, 9, 5)}}
    [axes] = figures.plot_latencies(rows).axes
    drawn = bars(axes)
    for name, colour, median, ends in (("dense", BEFORE, 10, (9, 12)), ("small", AFTER, 4, (3, 9))):
        [bar] = drawn[name]
        assert bar.get_width() == median
        assert bar.get_facecolor() == pytest.approx(figures_colour(colour))
        [[low, high]] = drawn[name].errorbar[2][0].get_segments()
        assert (low[0], high[0]) == ends


def figures_colour(name):
    return (*(int(name[place : place + 2], 16) / 255 for place in (1, 3, 5)), 1.0)


def test_a_part_stands_at_its_error_before_and_after():
    [axes] = figures.plot_recovery([PartReport("stem", 0.5, 0.25), PartReport("neck", 0.4, 0.1)]).axes
    points = {dots.get_label(): [x for x, _ in dots.get_offsets()] for dots in axes.collections}
    assert (points["before"], points["after"]) == ([0.5, 0.4], [0.25, 0.1])


def test_a_layer_shows_its_filters_before_and_after_and_its_error():
    layers = [
        LayerReport("layer1.0.conv1", (64, 64, 1, 1), (60, 64, 1, 1), None, None, 1, 1),
        LayerReport("layer1.0.conv2", (64, 64, 3, 3), (49, 60, 3, 3), 1, 0.25, 1, 1),
    ]
    widths, errors = figures.plot_layers(layers).axes
    heights = {label: [bar.get_height() for bar in drawn] for label, drawn in bars(widths).items()}
    assert heights == {"before": [64, 64], "after": [60, 49]}
    assert [bar.get_height() for bar in errors.patches] == [0, 0.25]


def test_categories_stand_in_their_order_beside_those_of_other_runs():
    others = {"dense": {"dog": 50.0, "cat": None}}
    [axes] = figures.plot_categories("small", {"dog": 57.0, "cat": 20.0}, others, 60.0).axes
    assert [bar.get_width() for bar in axes.patches] == [57, 20]
    [dots] = [dots for dots in axes.collections if dots.get_label() == "dense"]
    assert dots.get_offsets().tolist() == [[50, 0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dog", "cat"]
    assert axes.get_xlim()[1] == pytest.approx(66)
