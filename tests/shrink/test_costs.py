"""Predicted milliseconds beside a machine that is known to the last digit."""

from dataclasses import replace

import pytest

from norton_det.shrink.choosing import Option
from norton_det.shrink.costs import Costs, Line
from norton_det.shrink.levers import DENSE, SIZES, Choice

FIXED, LAYERS, HEAD = 5.0, 100.0, 0.2
"""Milliseconds of an image, of its layers at full size, and of a proposal."""
SHARES = {DENSE: (1.0, 1.0), "half": (0.5, 0.25)}
"""What a plan leaves of the layers, and of the heads."""
COUNTS = (100, 30)


def machine(choice, overhead=0.0):
    layers, heads = SHARES[choice.plan]
    faster = {"float32": 1.0, "int8": 0.4}[choice.precision]
    worked = layers * LAYERS * choice.size**2 + heads * HEAD * choice.proposals
    return FIXED + overhead + faster * worked


def measured():
    def dense(size, count, precision):
        return machine(Choice(DENSE, size, count, precision))

    def line(plan, precision):  # of a workload that is another than the photos'
        full, small = (machine(Choice(plan, size, 100, precision), overhead=3.0) for size in (1.0, SIZES[-1]))
        return Line.through(full, small, SIZES[-1])

    precisions = ("float32", "int8")
    return Costs(
        {p: {size: dense(size, 100, p) for size in SIZES} for p in precisions},
        {p: {count: dense(1.0, count, p) for count in COUNTS} for p in precisions},
        {(plan, p): line(plan, p) for plan in SHARES for p in precisions},
    )


@pytest.mark.parametrize("plan", SHARES)
@pytest.mark.parametrize("size", [1.0, 0.85, 0.75, 0.5])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_combination_that_was_not_measured_is_predicted(plan, size, count, precision):
    choice = Choice(plan, size, count, precision)
    assert measured().predict(choice) == pytest.approx(machine(choice))


def test_a_file_that_was_slower_than_predicted_corrects_what_is_like_it_and_nothing_else():
    made, like_it, other = (
        Choice("half", size, 100, p) for size, p in ((1.0, "int8"), (0.5, "int8"), (1.0, "float32"))
    )
    costs = measured().corrected([Option(made, 1.5 * measured().predict(made), 0.0)])
    assert costs.predict(like_it) == pytest.approx(1.5 * machine(like_it))
    assert costs.predict(other) == pytest.approx(machine(other))
    assert costs.predict(Choice(DENSE, 1.0, 100, "int8")) == pytest.approx(machine(Choice(DENSE, 1.0, 100, "int8")))


def test_what_was_measured_in_another_unit_is_predicted_and_corrected_in_milliseconds():
    costs, choice = replace(measured(), unit=3.0), Choice("half", 0.5, 100, "int8")
    assert costs.predict(choice) == pytest.approx(3 * machine(choice))
    assert costs.corrected([Option(choice, 50.0, 0.0)]).predict(choice) == pytest.approx(50)


def test_a_detector_of_one_stage_has_no_proposals():
    sizes = {"float32": {1.0: 10.0, 0.5: 4.0}}
    lines = {(DENSE, "float32"): Line(2.0, 8.0), ("half", "float32"): Line(2.0, 4.0)}
    costs = Costs(sizes, {"float32": {0: 10.0}}, lines)
    assert costs.predict(Choice("half", 0.5, 0, "float32")) == pytest.approx(3.0)
