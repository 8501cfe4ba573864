"""Check a configuration's data before days of training: what a run would read, leave out, warn of and refuse.

Ends with exit code 2 if a run would be refused.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from norton_det.builders.checking import Health, check_data
from norton_det.config import load_config
from norton_det.files import write_json
from norton_det.names import number_of

MOST_LINES = 20
"""The most problems that are printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--headers", action="store_true", help="read only the images' headers, not their pixels")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the configuration")


def run(args: argparse.Namespace) -> None:
    """Print the report, write the JSON. Raises ValueError if a run would be refused."""
    found = check_data(load_config(args.config, args.overrides), pixels=not args.headers)
    for split, health in found.items():
        print("\n".join(format_health(split, health)))
    if args.json:
        write_json(args.json, {split: asdict(health) for split, health in found.items()})
    if count := sum(len(health.problems) for health in found.values()):
        raise ValueError(f"a run would be refused for {number_of(count, 'problem')}, see above")
    print("a run would begin")


def format_health(split: str, health: Health) -> list[str]:
    """Return the lines on a dataset."""
    width = max(map(len, health.objects), default=0)
    hidden = len(health.problems) - MOST_LINES
    return [
        f"{split}: {health.annotations}",
        f"  {number_of(health.images, 'image')}, {number_of(sum(health.objects.values()), 'object')}"
        + "".join(f", {count} {size}" for size, count in health.sizes.items()),
        *(f"    {name:{width}} {count:8}" for name, count in health.objects.items()),
        *(f"  note: {note}" for note in health.notes),
        *(f"  problem: {problem}" for problem in health.problems[:MOST_LINES]),
        *([f"  and {number_of(hidden, 'more problem')} (--json has all)"] if hidden > 0 else []),
    ]
