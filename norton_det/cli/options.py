"""What several commands ask of their options."""

import argparse
from contextlib import suppress


def require_at_least(args: argparse.Namespace, **least: int) -> None:
    """Raise ValueError naming the first option, of those that are given, with a number below its least."""
    for name, smallest in least.items():
        value = getattr(args, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number < smallest:
                raise ValueError(f"--{name.replace('_', '-')}: at least {smallest}, got {number}")


def share(text: str) -> float:
    """The number from 0 to 1 that an option says, as `type` of an argument."""
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"a number from 0 to 1, got {text!r}")
