"""What of a run's settings may be others when it is resumed, and what stays."""

import logging
import os
from collections.abc import Mapping
from typing import Any, Literal

from norton_det.files import sha256

log = logging.getLogger(__name__)
Rule = Literal["changes", "may not become none", "by content"]
Contents = Mapping[str, str]
"""Digests of the files that settings name, by setting; what is no file, or is gone, is left out."""


def by_setting(names: Mapping[Rule, str]) -> dict[str, Rule]:
    """The rule of each setting, from the settings' names by rule."""
    return {name: rule for rule, text in names.items() for name in text.split()}


def digests(named: Mapping[str, Any]) -> Contents:
    """The contents of the settings that name a file which is there."""
    return {name: sha256(path) for name, path in named.items() if isinstance(path, str) and os.path.isfile(path)}


def check_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], rules: Mapping[str, Rule], before: Contents, now: Contents
) -> Contents:
    """Tell which settings are others than when the run began; those that have no rule stay what they were.

    Returns the contents that the run goes on with: of a file that is gone those of before.

    "changes": the new value counts from here on. "may not become none": so does it, unless it is none. "by content":
    a file may lie elsewhere, but has to be the same one, unless it is gone.

    Raises:
        ValueError: a setting that stays is another one, which the message names with both values.
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
