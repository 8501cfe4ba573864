"""Searches: makes what is predicted to be best, measures it, corrects the predictions, goes on while that pays."""

from collections.abc import Callable, Collection, Mapping

from norton_det.shrink.choosing import Goal, Option, best
from norton_det.shrink.costs import Costs
from norton_det.shrink.levers import NOTHING, Choice
from norton_det.shrink.quality import Quality

RECOVERIES = 3
"""The most detectors that are restored for one goal: recovery takes most of the time."""
ATTEMPTS = 6
"""The most files that are made for one goal."""


def predicted(choices: Collection[Choice], costs: Costs, quality: Quality) -> list[Option]:
    """Predict the milliseconds and the agreement of each choice."""
    return [Option(choice, costs.predict(choice), quality.predict(choice)) for choice in choices]


def search(
    choices: Collection[Choice],
    costs: Costs,
    quality: Quality,
    goal: Goal,
    make: Callable[[Choice], Option],
    made: Mapping[Choice, Option],
) -> dict[Choice, Option]:
    """Make choices until one meets the goal and none is predicted to be clearly better; return all that were made.

    What was `made` before counts too, also for another goal. If a choice that has nothing to learn is predicted to be
    enough, it is made first, as it takes no recovery; a later one must then be better.
    """
    made = dict(made)
    before = set(made)
    restored = {choice.learnt for choice in made} | {NOTHING}
    most = len(restored) + RECOVERIES
    while len(made) < len(before) + ATTEMPTS:
        kept = best(made.values(), goal)
        options = predicted(
            [
                choice
                for choice in choices
                if choice not in made and (choice.learnt in restored or len(restored) < most)
            ],
            costs.corrected(made.values()),
            quality.corrected(made.values()),
        )
        plain = [option for option in options if option.choice.learnt == NOTHING]
        candidate = (best(plain, goal) if kept is None else None) or best(options, goal)
        if candidate is None:
            if kept or set(made) - before or not options:
                break
            candidate = goal.nearest(options)
        elif kept and not goal.is_clearly_better(candidate, kept):
            break
        made[candidate.choice] = make(candidate.choice)
        restored.add(candidate.choice.learnt)
    return made
