"""Puts names into messages: the known one nearest to an unknown one, the first few of many, a noun with its count."""

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'train.lr'?" with the known name most like the given one; "" where none is like it."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def some(names: Sequence[str], shown: int = 8) -> str:
    """Return the first names in one line, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun: "1 image", "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
