"""What several commands ask of their options."""

import argparse


def require_at_least(args: argparse.Namespace, **least: int) -> None:
    """Raise ValueError naming the first option, of those that are given, whose number is below its least."""
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            raise ValueError(f"--{name.replace('_', '-')}: at least {smallest}, got {value}")
