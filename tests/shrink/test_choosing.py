"""The choice over a table, beside looking at every option."""

import random

import pytest

from norton_det.shrink.choosing import Deadline, LeastAgreement, Option, best, front
from norton_det.shrink.levers import Choice


def options(count=200, seed=0):
    draw = random.Random(seed)
    return [
        Option(Choice(str(number), 1.0, 0, "float32"), draw.randint(1, 100), draw.randint(1, 100))
        for number in range(count)
    ]


@pytest.mark.parametrize("milliseconds", [1, 20, 60, 100])
def test_a_deadline_takes_the_most_agreement_of_what_is_fast_enough_and_the_fastest_of_equals(milliseconds):
    found = best(options(), Deadline(milliseconds))
    fast = [option for option in options() if option.milliseconds <= milliseconds]
    assert found.agreement == max(option.agreement for option in fast)
    equals = [option.milliseconds for option in fast if option.agreement == found.agreement]
    assert found.milliseconds == min(equals)


def test_a_deadline_is_kept_by_what_misses_it_by_less_than_can_be_measured():
    just_above, clearly_above = (Option(Choice(str(ms), 1.0, 0, "float32"), ms, 90.0) for ms in (60.6, 63.0))
    fast = Option(Choice("fast", 1.0, 0, "float32"), 55.0, 40.0)
    assert best([fast, just_above, clearly_above], Deadline(60)) == just_above


@pytest.mark.parametrize("agreement", [1, 50, 99])
def test_a_least_agreement_takes_the_fastest_of_what_agrees_enough(agreement):
    found = best(options(), LeastAgreement(agreement))
    enough = [option for option in options() if option.agreement >= agreement]
    assert found.milliseconds == min(option.milliseconds for option in enough)


def test_there_is_no_best_option_where_none_does_what_is_asked():
    assert best(options(), Deadline(0.5)) is None
    assert best(options(), LeastAgreement(101)) is None


def test_the_nearest_to_a_deadline_is_the_fastest_and_to_an_agreement_what_agrees_most():
    assert Deadline(0.5).nearest(options()).milliseconds == min(o.milliseconds for o in options())
    assert LeastAgreement(101).nearest(options()).agreement == max(o.agreement for o in options())


def test_nothing_of_the_front_is_beaten_in_both_and_everything_else_is():
    shown = front(options())
    for option in options():
        beaten = any(
            other.milliseconds <= option.milliseconds
            and other.agreement >= option.agreement
            and (other.milliseconds, other.agreement) != (option.milliseconds, option.agreement)
            for other in options()
        )
        points = [(each.milliseconds, each.agreement) for each in shown]
        assert beaten != ((option.milliseconds, option.agreement) in points)
