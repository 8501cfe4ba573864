"""The plots: SVG that can stand inside a page."""

from xml.etree import ElementTree

import numpy as np
import pytest

from norton_det.analysis.complexity import Count
from norton_det.analysis.latency import Latency
from norton_det.compression.compress import LayerReport, PartReport
from norton_det.evaluation.coco import PrecisionRecall
from norton_det.report import figures

HOSTILE = "<script>alert('$x_{')</script>"
CURVE = np.linspace(1, 0, 101)
LAYER = LayerReport("layer1.0.conv2", (64, 64, 3, 3), (49, 49, 3, 3), 1, 0.25, 36864, 2744)
FIGURES = {
    "steps": lambda: figures.plot_steps({HOSTILE: [(1, 2.0), (2, 1.0)], "b": [(1, 1.0)]}, "loss"),
    "categories": lambda: figures.plot_categories(
        "b", {"a": 4.0, HOSTILE: 1.0}, {HOSTILE: {"a": None, HOSTILE: 3.0}, "c": {}}, 4.0
    ),
    "precision_recall": lambda: figures.plot_precision_recall(
        PrecisionRecall({0.5: CURVE, 0.75: CURVE / 2}, {HOSTILE: CURVE}), "IoU"
    ),
    "layers": lambda: figures.plot_layers([LAYER, LAYER]),
    "recovery": lambda: figures.plot_recovery([PartReport(HOSTILE, 0.5, 0.25)]),
    "parts": lambda: figures.plot_parts({HOSTILE: {"body": Count(5, 10, 10)}}, "macs", 1, "MACs"),
    "latencies": lambda: figures.plot_latencies({HOSTILE: {"dense": Latency(10, 9, 12, 5)}, "b": {}}),
    "pareto": lambda: figures.plot_pareto({HOSTILE: (10.0, 40.0), "b": (5.0, 30.0)}, "b"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_plot_is_one_svg_that_needs_nothing_else_and_runs_nothing(name):
    svg = FIGURES[name]()
    assert "http" not in svg and "<script" not in svg
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert root.tag == "svg" and set(root.attrib) == {"viewBox"}
    references = {element.get("href") for element in root.iter("use")}
    assert all(root.find(f".//*[@id='{reference[1:]}']") is not None for reference in references)
    assert "currentColor" in svg and "var(--grid)" in svg


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_numbers_give_the_same_bytes(name):
    assert FIGURES[name]() == FIGURES[name]()


def texts(svg):
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg.replace("xlink:", "")).iter("text")]


def test_names_are_text_as_they_are_written():
    assert HOSTILE in texts(FIGURES["recovery"]())


def test_values_stand_at_the_bars():
    counts = {"dense": {"body": Count(5, 2_000, 0), "box_head": Count(5, 300, 0)}, "small": {"body": Count(5, 10, 0)}}
    svg = figures.plot_parts(counts, "macs", 1e3, "kMACs")
    assert {"2", "0.3", "0.01", "body", "box head", "kMACs"} <= set(texts(svg))


def test_numbers_have_three_digits_or_are_whole():
    assert [figures.short_number(value) for value in (0.0379, 2.0727, 41.0, 999.7, 2731.5)] == [
        *("0.0379", "2.07", "41", "1,000", "2,732")
    ]


def test_the_line_joins_the_runs_that_no_other_beats_in_both():
    """Of three runs one is slower and worse than another: two points of a dashed line."""
    runs = {"fast": (5.0, 30.0), "good": (10.0, 40.0), "bad": (11.0, 39.0)}
    root = ElementTree.fromstring(figures.plot_pareto(runs, "good").replace("xlink:", ""))
    (line,) = (path for path in root.iter("path") if "stroke-dasharray" in path.get("style", ""))
    assert line.get("d").count("L") == 1
    assert {"fast", "good", "bad"} <= set(texts(figures.plot_pareto(runs, "good")))
