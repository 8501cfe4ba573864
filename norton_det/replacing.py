"""Replaces an attribute of another module or object for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace a function of a library's module or object inside the `with` block, where it takes none as an
    argument."""
    own = vars(owner).get(name)  # an object mostly has its class's
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
