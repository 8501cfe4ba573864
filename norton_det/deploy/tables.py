"""Formats what was measured of detectors side by side, as tables to print."""

from collections.abc import Mapping
from typing import Any

from norton_det.deploy.benchmark import Measured, SideBySide, every_level


def format_parts(found: SideBySide) -> str:
    """Format a table with a row for each part and a column for each treatment and model: milliseconds, and the share
    of arithmetic if it is known; more than all of the time is noise, and left out."""
    times, shares = _columns(found.seconds_by_part), _columns(found.share_of_arithmetic)
    parts = list(dict.fromkeys(part for column in times.values() for part in column if part != "rest"))
    width = max(map(len, times)) + 2
    rows = [f"{'ms by part':18}" + "".join(f"{name:>{width}}" for name in times)]
    for part in [*parts, "rest"]:
        cells = []
        for name, column in times.items():
            share = shares.get(name, {}).get(part)
            told = f"{1000 * column[part]:.1f}" if part in column else "-"
            cells.append(told if share is None or share > 1 else f"{told} ({share:.0%})")
        rows.append(f"{part:18}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(rows)


def format_latencies(measured: Mapping[str, Mapping[str, Measured]]) -> str:
    """Format a table with a row for each treatment and model.

    Its columns are the milliseconds of a call, its speed relative to the first model in the same treatment and to the
    very first row, the images a second with several calls at a time, also as a multiple of those of one call after
    the other, and the memory that a call takes.
    """
    first = next(iter(next(iter(measured.values())).values())).median
    rows = [
        f"{'treatment':20}{'model':18}{'median ms':>11}{'p5':>9}{'p95':>9}{'speed':>8}{'in all':>8}"
        f"{'images/s':>10}{'gain':>8}{'peak MiB':>10}"
    ]
    for treatment, models in measured.items():
        dense = next(iter(models.values())).median
        for name, row in models.items():
            rows.append(
                f"{treatment:20}{name:18}{row.median:>11.1f}{row.p5:>9.1f}{row.p95:>9.1f}"
                f"{dense / row.median:>7.2f}x{first / row.median:>7.2f}x"
                f"{row.images_a_second:>10.2f}{row.throughput_gain:>7.2f}x{row.peak_memory / 2**20:>10.0f}"
            )
    return "\n".join(rows)


def format_profiles(profiles: Mapping[str, Mapping[str, Any]]) -> str:
    """Format lines on each model: size, work, regions, milliseconds by part."""
    rows = []
    for name, values in profiles.items():
        milliseconds = values["milliseconds_by_part"]
        parts = ", ".join(f"{part} {ms:.1f}" for part, ms in milliseconds.items())
        regions = ", ".join(f"{count} for the {kind} head" for kind, count in values["regions"].items())
        level_head = {"rpn head": "RPN", "heads": "heads"}[every_level(milliseconds)]
        rows.append(
            f"{name}: {values['parameters']:,} parameters, {values['macs'] / 1e9:.1f} GMACs, "
            f"{values['bytes'] / 2**20:.0f} MiB{f'; regions: {regions}' if regions else ''}\n"
            f"  optimised torch, ms: {parts}; body, neck and {level_head} reach {values['share_of_peak']:.0%} of the"
            " peak rate"
        )
    return "\n".join(rows)


def _columns(of_treatments: Mapping[str, Mapping[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        f"{treatment}, {name}": value for treatment, rows in of_treatments.items() for name, value in rows.items()
    }
