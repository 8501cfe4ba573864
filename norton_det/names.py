"""Puts names into messages: the known one that is nearest to an unknown one, and the first few of many."""

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'train.lr'?" with the known name most like the given one; "" where none is like it."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def some(names: Sequence[str], shown: int = 8) -> str:
    """Return the first names in one line, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
