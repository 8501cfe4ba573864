"""The search, on machines whose files differ from what was predicted."""

import pytest
from test_costs import COUNTS, machine, measured
from test_quality import quality

from norton_det.shrink.choosing import Deadline, LeastAgreement, Option, best
from norton_det.shrink.levers import DENSE, SIZES, Learnt, all_choices
from norton_det.shrink.quality import Quality
from norton_det.shrink.searching import ATTEMPTS, search

CHOICES = all_choices(["half", DENSE], SIZES, COUNTS, ["float32", "int8"])
COSTS = measured()


def known(truth):
    return Quality(quality().sizes, quality().proposals, quality().precisions, {"half": 0.4, DENSE: 0.0}, truth)


class World:
    """What files really take and do: slower than predicted, and with plans of a certain share."""

    def __init__(self, slower=1.0, share=0.9):
        self.slower, self.truth, self.asked = slower, known({Learnt("half", 1.0): share}), []

    def make(self, choice):
        self.asked.append(choice)
        return Option(choice, self.slower * machine(choice), self.truth.predict(choice))

    def all(self):
        return [self.make(choice) for choice in CHOICES]


def found(world, goal, made=()):
    return best(search(CHOICES, COSTS, known({}), goal, world.make, {o.choice: o for o in made}).values(), goal)


@pytest.mark.parametrize("goal", [Deadline(30), Deadline(60), Deadline(90), LeastAgreement(90), LeastAgreement(70)])
@pytest.mark.parametrize("slower", [1.0, 1.3])
@pytest.mark.parametrize("share", [0.5, 0.65])
def test_what_is_found_meets_the_goal_and_hardly_anything_would_have_been_better(goal, slower, share):
    world = World(slower, share)
    chosen = found(world, goal)
    made = len(world.asked)
    assert goal.is_met(chosen) and made <= ATTEMPTS
    perfect = best(world.all(), goal)
    if isinstance(goal, Deadline):
        assert chosen.agreement >= perfect.agreement - 3
    else:
        assert chosen.milliseconds <= 1.1 * perfect.milliseconds


def test_nothing_is_made_twice():
    world = World(1.2, 0.7)
    found(world, Deadline(50))
    assert len(world.asked) == len(set(world.asked))


def test_what_was_made_for_another_goal_is_not_made_again_where_it_is_best():
    world = World(1.0, 0.9)
    first = found(world, Deadline(50))
    again = World(1.0, 0.9)
    assert found(again, Deadline(50), [world.make(choice) for choice in [*world.asked]]) == first
    assert not again.asked


def test_where_nothing_meets_the_goal_the_nearest_is_made_once():
    world = World()
    made = search(CHOICES, COSTS, known({}), Deadline(1.0), world.make, {})
    assert best(made.values(), Deadline(1.0)) is None
    assert world.asked == [min(CHOICES, key=COSTS.predict)]
