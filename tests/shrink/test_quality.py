"""Predicted agreement."""

import math
from itertools import pairwise

import pytest

from norton_det.shrink.choosing import Option
from norton_det.shrink.levers import DENSE, NOTHING, Choice, Learnt, all_choices
from norton_det.shrink.quality import STEEPNESS, Quality

ERRORS = {"small": 0.8, "middle": 0.4, "large": 0.1, DENSE: 0.0}


def quality(restored=None):
    return Quality(
        {1.0: 1.0, 0.5: 0.4}, {100: 1.0, 30: 0.9}, {"float32": 1.0, "int8": 0.95}, ERRORS, dict(restored or {})
    )


def test_shares_multiply_and_what_is_learnt_keeps_more_than_it_would_lose():
    assert quality().predict(Choice(DENSE, 1.0, 30, "int8")) == pytest.approx(100 * 0.9 * 0.95)
    shown, learnt = (
        quality().predict(Choice(DENSE, 0.75, 30, "int8", learns)) / (100 * 0.9 * 0.95) for learns in (False, True)
    )
    assert shown == pytest.approx(0.7)  # half the way from 0.4 to 1
    assert learnt == pytest.approx(0.7 ** STEEPNESS[1])
    both = quality({Learnt("middle", 1.0): 0.8}).predict(Choice("middle", 0.75, 100, "float32"))
    assert both == pytest.approx(100 * 0.8 * 0.7)


@pytest.mark.parametrize("restored", [{}, {"middle": 0.7}, {"small": 0.9, "large": 0.9}, {"large": 0.6}])
@pytest.mark.parametrize("restored_at", [1.0, 0.5])
def test_what_loses_more_before_is_never_predicted_to_agree_more(restored, restored_at):
    seen = quality({Learnt(plan, restored_at): share for plan, share in restored.items()})
    for size in (1.0, 0.8, 0.5):
        shares = [seen.share(Learnt(name, size)) for name in ERRORS]
        assert shares == sorted(shares)
    for name in ERRORS:
        assert all(
            small <= large for small, large in pairwise(seen.share(Learnt(name, size)) for size in (0.5, 0.8, 1.0))
        )
    assert seen.share(NOTHING) == 1


def test_only_smaller_images_are_learnt():
    assert [(choice.size, choice.learns) for choice in all_choices([DENSE], (1.0, 0.5), [100], ["int8"])] == [
        (1.0, False),
        (0.5, False),
        (0.5, True),
    ]


def test_a_restored_detector_is_as_its_file_showed_and_the_curve_moves_towards_it():
    seen = quality().corrected([Option(Choice("middle", 1.0, 30, "int8"), 1.0, 100 * 0.5 * 0.9 * 0.95)])
    assert seen.share(Learnt("middle", 1.0)) == pytest.approx(0.5)
    assert seen.predict(Choice("middle", 1.0, 100, "float32")) == pytest.approx(50)
    exact = -math.log(0.5) / 0.4
    of_plan, of_size = seen.steepness
    assert STEEPNESS[0] < of_plan < exact and of_size == pytest.approx(STEEPNESS[1])
    assert seen.share(Learnt("small", 1.0)) == pytest.approx(math.exp(-0.8 * of_plan))
    assert seen.share(Learnt(DENSE, 0.5)) == pytest.approx(0.4 ** STEEPNESS[1])


def test_plans_and_sizes_are_told_apart():
    """Also where nothing says that plans cost anything: a few detectors cannot tell that they are free."""
    seen = quality({Learnt("small", 1.0): 0.3, Learnt(DENSE, 0.5): 0.8})
    of_plan, of_size = seen.steepness
    assert of_plan > STEEPNESS[0] and of_size < STEEPNESS[1]
    puzzling = quality({Learnt("middle", 0.5): 0.8, Learnt(DENSE, 0.75): 0.7})
    assert puzzling.share(Learnt("small", 1.0)) < 0.7


def test_what_the_dense_detector_showed_says_nothing_of_what_is_learnt():
    assert quality().corrected([Option(Choice(DENSE, 1.0, 30, "int8"), 1.0, 10.0)]) == quality()
