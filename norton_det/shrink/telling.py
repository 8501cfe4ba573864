"""Tells the result as plain data, as a table, and in sentences."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from norton_det.evaluation.agreement import SCORE
from norton_det.shrink.choosing import Deadline, Option, front
from norton_det.shrink.quantising import HARMLESS, Int8Report
from norton_det.shrink.shrinking import Result
from norton_det.shrink.workshop import Made

STEP = 3.0
"""Points of agreement that more time must promise to be told of."""
MOST_TOLD = 3


def summary(result: Result, held_back: Sequence[Path]) -> dict[str, Any]:
    """Return the two detectors, the goal and the photos that agreement was measured on as plain types."""
    return {
        "goal": str(result.goal),
        "is_met": result.is_met,
        "milliseconds_as_shipped": result.shipped,
        "held_back": [str(path) for path in held_back],
        **{name: _figures(made) for name, made in (("dense", result.before), ("small", result.after))},
    }


def _figures(made: Made) -> dict[str, Any]:
    return {
        **asdict(made.option),
        "p95": made.p95,
        "agreement_interval": made.interval,
        "metrics": made.metrics,
        "by_category": made.by_category,
        "matching_score": made.matching_score,
        "parameters": made.parameters,
        "macs": made.macs,
        "bytes": made.bytes,
    }


def format_result(result: Result) -> str:
    """Format a table of the dense and the small detector, and say what was chosen."""
    rows = [f"{'':8}{'ms':>9}{'p95':>9}{'agreement':>11}{'95 %':>15}{'parameters':>13}{'MMACs':>9}{'MiB':>7}"]
    for name, made in (("dense", result.before), ("small", result.after)):
        low, high = made.interval
        rows.append(
            f"{name:8}{made.option.milliseconds:>9.1f}{made.p95:>9.1f}{made.option.agreement:>11.1f}"
            f"{f'{low:.1f} to {high:.1f}':>15}{made.parameters:>13,}{made.macs / 1e6:>9,.0f}"
            f"{made.bytes / 2**20:>7.1f}"
        )
    rows += ["", f"chosen: {result.after.option.choice}", speed(result)]
    if result.after.option.choice.precision == "int8" and result.int8:
        rows.append(int8_cost(result.int8))
    rows.append(matching_score(result.after))
    if further := with_more_time(result):
        told = ", ".join(f"{option.milliseconds:.3g} ms: {option.agreement:.0f}" for option in further)
        rows.append(f"with more time, agreement as predicted: {told}")
    return "\n".join(rows)


def speed(result: Result) -> str:
    """Say how much faster the chosen detector is."""
    after = result.after.option.milliseconds
    before = result.before.option
    return (
        f"{result.shipped / after:.1f}x as fast as the dense one as shipped, in torch ({result.shipped:.3g} ms), "
        f"{before.milliseconds / after:.1f}x as fast as its file in {before.choice.precision}"
    )


def matching_score(made: Made) -> str:
    """Say from which score on a detector finds as many objects as the dense one."""
    if made.matching_score is None or math.isnan(made.matching_score):
        return "it finds nothing"
    return f"from a score of {made.matching_score:.2f} on it finds as many objects as the dense one from {SCORE:g} on"


def int8_cost(report: Int8Report) -> str:
    """Say what int8 costs, and what was left in floating point for that."""
    lost = report.floating.agreement - report.chosen.agreement
    cost = f"{lost:.1f} points of agreement" if lost > HARMLESS else "hardly any agreement"
    left = f", with {', '.join(report.recipe.in_float)} left in floating point" if report.recipe.in_float else ""
    return f"int8 costs {cost}{left}"


def with_more_time(result: Result) -> list[Option]:
    """Return what later deadlines would give, as predicted: a few choices, each clearly better than the last."""
    if not isinstance(result.goal, Deadline):
        return []
    told: list[Option] = []
    agreement = result.after.option.agreement
    for option in front(result.considered):
        if option.milliseconds > result.goal.milliseconds and option.agreement > agreement + STEP:
            told.append(option)
            agreement = option.agreement
    return told[:MOST_TOLD]
