"""Decides which of a run's settings may change when it is resumed, and which must stay."""

import logging
import os
from collections.abc import Mapping
from typing import Any, Literal

from norton_det.files import sha256

log = logging.getLogger(__name__)
Rule = Literal["changes", "may not become none", "by content"]
Contents = Mapping[str, str]
"""Digests of the files that settings name, by setting; settings whose value is no file, or is gone, are left out."""


def by_setting(names: Mapping[Rule, str]) -> dict[str, Rule]:
    """Return the rule of each setting, from the settings' names by rule."""
    return {name: rule for rule, text in names.items() for name in text.split()}


def digests(named: Mapping[str, Any]) -> Contents:
    """Return the digests of the files that settings name, of those that are there."""
    return {name: sha256(path) for name, path in named.items() if isinstance(path, str) and os.path.isfile(path)}


def check_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], rules: Mapping[str, Rule], before: Contents, now: Contents
) -> Contents:
    """Log which settings have changed since the run began, and refuse changes that no rule allows.

    The rules: "changes": the new value counts from here on. "may not become none": likewise, unless the new value is
    none. "by content": the file may lie elsewhere, but must have the same content, unless it is gone. A setting
    without a rule must stay what it was.

    Returns the contents that the run goes on with; for a file that is gone, those of before.

    Raises:
        ValueError: a setting that must stay has changed; the message names it with both values.
    """
    refused, taken = [], []
    for name, value in new.items():
        was, rule = old.get(name, value), rules.get(name)
        if rule == "by content" and name in before and name in now:
            if before[name] != now[name]:
                refused.append(f"{name} was another file when the run began than {value!r} is now")
        elif value != was:
            if rule == "changes" or (rule == "may not become none" and value is not None):
                taken.append((name, value, was))
            else:
                refused.append(f"{name} was {was!r} when the run began, got {value!r}")
    if refused:
        raise ValueError(f"--resume: {'; '.join(refused)}: give that, or begin a new run without --resume")
    for change in taken:
        log.info("--resume: %s is %r from here on, it was %r", *change)
    return {**before, **now}
