"""Tells the result as plain data and as a table."""

from dataclasses import asdict
from typing import Any

from norton_det.shrink.shrinking import Result
from norton_det.shrink.workshop import Made


def summary(result: Result) -> dict[str, Any]:
    """Return the two detectors and the goal as plain types."""
    return {
        "goal": str(result.goal),
        "is_met": result.is_met,
        **{name: _figures(made) for name, made in (("dense", result.before), ("small", result.after))},
    }


def _figures(made: Made) -> dict[str, Any]:
    return {
        **asdict(made.option),
        "p95": made.p95,
        "agreement_interval": made.interval,
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
    rows.append(f"chosen: {result.after.option.choice}")
    if result.after.option.choice.precision == "int8" and result.int8:
        lost = result.int8.floating.agreement - result.int8.chosen.agreement
        rows.append(
            f"int8 costs {lost:.1f} points; in floating point: {', '.join(result.int8.recipe.in_float) or '-'}"
        )
    return "\n".join(rows)
