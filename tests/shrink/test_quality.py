"""Predicted agreement."""

import math

import pytest

from norton_det.shrink.choosing import Option
from norton_det.shrink.levers import DENSE, Choice
from norton_det.shrink.quality import Quality

ERRORS = {"small": 0.8, "middle": 0.4, "large": 0.1, DENSE: 0.0}


def quality(recovered=None):
    return Quality(
        {1.0: 1.0, 0.5: 0.8}, {100: 1.0, 30: 0.9}, {"float32": 1.0, "int8": 0.95}, ERRORS, dict(recovered or {})
    )


def test_shares_multiply_and_sizes_are_interpolated():
    assert quality().predict(Choice(DENSE, 0.75, 30, "int8")) == pytest.approx(100 * 0.9 * 0.9 * 0.95)


def test_a_plan_of_more_error_is_never_predicted_to_agree_more():
    for recovered in ({}, {"middle": 0.7}, {"small": 0.9, "large": 0.9}, {"large": 0.6}):
        shares = [quality(recovered).plan(name) for name in ERRORS]
        assert shares == sorted(shares)
        assert shares[-1] == 1


def test_the_curve_goes_through_what_a_recovered_plan_showed():
    seen = quality().corrected([Option(Choice("middle", 0.5, 30, "int8"), 1.0, 100 * 0.7 * 0.8 * 0.9 * 0.95)])
    assert seen.plan("middle") == pytest.approx(0.7)
    assert seen.predict(Choice("middle", 1.0, 100, "float32")) == pytest.approx(70)
    assert seen.plan("small") == pytest.approx(0.7 ** (0.8 / 0.4))
    assert seen.steepness == pytest.approx(-math.log(0.7) / 0.4)


def test_what_the_dense_detector_showed_says_nothing_of_plans():
    assert quality().corrected([Option(Choice(DENSE, 0.5, 30, "int8"), 1.0, 10.0)]) == quality()
