"""What the report says of numbers: differences have their sign, units their size, rows their order."""

import re

import pytest

from norton_det.analysis.complexity import Count
from norton_det.analysis.latency import Latency
from norton_det.report import figures
from norton_det.report.run_data import Benchmark, BenchmarkedModel, Run
from norton_det.report.sections import Material, _short, report


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
