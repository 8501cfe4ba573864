"""What the report says of numbers: differences have their sign, units their size, rows their order."""

import re
from dataclasses import replace

import pytest

from norton_det.analysis.complexity import Count
from norton_det.analysis.latency import Latency
from norton_det.compression.compress import CompressionReport, LayerReport
from norton_det.report import figures
from norton_det.report.material import Material
from norton_det.report.run_data import Benchmark, BenchmarkedModel, Run
from norton_det.report.sections import _short, report


def run(name, ap, by_category):
    return Run(name, None, {}, [], {"bbox": {"AP": ap}}, {"bbox": by_category}, None, None)


@pytest.fixture
def material():
    runs = {
        "dense": run("dense", 40.0, {"cat": 30.0, "dog": 50.0}),
        "small": run("small", 38.5, {"cat": 20.0, "dog": 57.0, "eel": None}),
    }
    counts = {"dense": {"body": Count(40_000_000, 10**10, 0)}, "small": {"body": Count(10_000_000, 10**9, 0)}}

    def timed(trained, **medians):
        models = {
            name: BenchmarkedModel({"torch": Latency(median, median, median, 1)}, trained)
            for name, median in medians.items()
        }
        return Benchmark("a CPU", (96, 128), models)

    benchmarks = [timed(False, dense=1.0, small=1.0), timed(True, dense=20.0, small=5.0)]
    return Material(runs, "dense", counts, (96, 128), None, None, (), benchmarks)


def test_the_run_is_compared_with_the_dense_one(material):
    facts = re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd><dd>([^<]*)</dd>", report(material))
    assert facts == [
        ("box AP", "38.5", "-1.5 vs dense"),
        ("parameters", "10 M", "-75 % vs dense"),
        ("MACs", "1 G", "-90 % vs dense"),
        ("latency", "5 ms", "-75 % vs dense"),  # of the runs, not of random weights of that name
    ]


def test_categories_fall_from_the_best_one(material, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "plot_categories", lambda *arguments: drawn.append(arguments) or "")
    report(material)
    [(name, values, others, highest)] = drawn
    assert (name, list(values.items()), highest) == ("small", [("dog", 57.0), ("cat", 20.0)], 57.0)
    assert others == {"dense": {"cat": 30.0, "dog": 50.0}}


def test_counts_have_three_digits_and_a_unit():
    assert [_short(value) for value in (950, 2_070, 5_885_736, 1.3485e11)] == ["950", "2.07 k", "5.89 M", "135 G"]


@pytest.mark.parametrize(
    ("detector", "title"),
    [
        ("faster_rcnn", "Faster R-CNN"),
        ("mask_rcnn_v2", "Mask R-CNN v2"),
        ("retinanet_v2", "RetinaNet v2"),
        ("fcos", "FCOS"),
    ],
)
def test_the_detector_is_named_as_people_write_it(detector, title, material):
    config = {"model": {"detector": detector}, "data": {"train": "a", "test": "b"}}
    told = replace(material.told, config=config)
    assert f"{title}, trained on a, evaluated on b" in report(replace(material, runs={"small": told}))


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (["body", "neck", "classification_head", "regression_head"], "pixels</figcaption>"),
        (["body", "neck", "rpn", "box_head"], "pixels, all proposed regions in the box head</figcaption>"),
        (
            ["rpn", "box_head", "mask_head"],
            "pixels, all proposed regions in the box head and one in the other</figcaption>",
        ),
    ],
)
def test_regions_are_told_of_detectors_that_have_them(parts, told, material):
    counts = dict.fromkeys(("dense", "small"), dict.fromkeys(parts, Count(1, 10, 10)))
    assert f"MACs for an image of 128 x 96 {told}" in report(replace(material, counts=counts))


def test_layers_stand_in_the_order_of_the_data(material):
    names = ["neck", "layer3.10.conv2", "layer3.2.conv2", "conv1", "layer1.0.conv1"]
    layers = tuple(LayerReport(name, (2, 2, 1, 1), (2, 2, 1, 1), None, None, 4, 4) for name in names)
    page = report(replace(material, compression=CompressionReport(layers, {})))
    ordered = ["conv1", "layer1.0.conv1", "layer3.2.conv2", "layer3.10.conv2", "neck"]
    assert re.findall(r"<t[dh][^>]*>((?:conv|layer|neck)[^<]*)</t", page)[-5:] == ordered
