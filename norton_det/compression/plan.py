"""Compression plans: which layers are decomposed at which rank, which tied channels lose which share."""

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from norton_det.models.detectors import PARTS
from norton_det.models.resnet import BLOCK_NAMES, GROUPS, SPATIAL_LAYERS, STAGES, ResNetSpec

PRESETS = {
    "norton-43": "[0.]+[0.1]*3+[0.02]*16",
    "norton-47": "[0.]+[0.115]*3+[0.1]*16",
    "norton-59": "[0.]+[0.28]*19",
    "norton-69": "[0.]+[0.45]*19",
    "norton-77": "[0.]+[0.1]*2+[0.4]*5+[0.75]*12",
}
"""The rank-1 plans for ResNet-50, named by the percentage of parameters that they remove."""
WHOLE_DETECTOR = {"neck": 1, "rpn": 1, "box_head": 128, "mask_head": 1, "keypoint_head": 1}
"""What a preset whose name ends in `-all` does to the other parts of a detector."""

_NOTATION_GROUPS = ("stem", *STAGES[:3])
_ENTRIES = len(_NOTATION_GROUPS) + len(BLOCK_NAMES)
_TERM = re.compile(r"\s*\[\s*([^\[\]]*?)\s*\]\s*(?:\*\s*(\d{1,4})\s*)?")


@dataclass(frozen=True)
class CompressionPlan:
    """A rank for each layer to decompose (others stay dense) and a pruning rate for each channel group.

    `ranks`: CP rank (at least 1) by layer name. `rates`: share of filters to drop, in [0, 1), by group name;
    a group that is not named loses nothing. `parts`: the rank of the layers of a detector's other parts, by part
    (CP rank of convolutions, rank of the box head's linear layers); one that a model lacks is passed over.
    Raises ValueError for a rank, rate or name that is not valid.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for layer, rank in self.ranks.items():
            _check_name(layer, SPATIAL_LAYERS, "layer to decompose")
            _check_rank(layer, rank)
        for part, rank in self.parts.items():
            _check_name(part, PARTS, "part of a detector")
            _check_rank(part, rank)
        for group, rate in self.rates.items():
            _check_name(group, GROUPS, "channel group")
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise ValueError(f"plan: rate of {group} must lie in [0, 1), got {rate!r}")

    @classmethod
    def from_notation(cls, text: str, rank: int = 1, parts: Mapping[str, int] | None = None) -> "CompressionPlan":
        """The paper's notation: a sum of repeated lists such as `[0.]+[0.1]*2+[0.4]*5+[0.75]*12`.

        Entry 0 is the stem, entries 1 to 3 the outputs of stages 1 to 3, the other sixteen the inner widths of
        the bottlenecks; every 3x3 convolution gets `rank`. Raises ValueError for any other text or length.
        """
        entries = parse_notation(text)
        if len(entries) != _ENTRIES:
            raise ValueError(f"plan {text!r} has {len(entries)} entries; ResNet-50 takes {_ENTRIES}")
        rates = dict(zip(_NOTATION_GROUPS, entries, strict=False))
        for block, rate in zip(BLOCK_NAMES, entries[len(_NOTATION_GROUPS) :], strict=True):
            rates[f"{block}.conv1"] = rates[f"{block}.conv2"] = rate
        return cls(dict.fromkeys(SPATIAL_LAYERS, rank), rates, dict(parts or {}))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CompressionPlan":
        """From `{"ranks": .., "rates": ..}` or `{"notation": .., "rank": ..}`, either with `"parts"` where wanted.

        Raises ValueError for anything else.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"a plan is a mapping with ranks and rates, got {type(data).__name__}")
        for key in ("ranks", "rates", "parts"):
            if not isinstance(data.get(key, {}), Mapping):
                raise ValueError(f"plan: {key} must be a mapping from names to numbers")
        if "notation" in data and set(data) <= {"notation", "rank", "parts"}:
            return cls.from_notation(data["notation"], data.get("rank", 1), data.get("parts"))
        if not set(data) <= {"ranks", "rates", "parts"}:
            raise ValueError(f"a plan has ranks and rates, or notation and rank, and parts; got {list(data)}")
        return cls(*(dict(data.get(key, {})) for key in ("ranks", "rates", "parts")))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain types, ready for JSON; `from_dict` reads it back."""
        return {"ranks": dict(self.ranks), "rates": dict(self.rates), "parts": dict(self.parts)}

    def apply(self, dense: ResNetSpec) -> ResNetSpec:
        """The structure that this plan gives to a network: widths are `int(width * (1 - rate))`.

        Raises ValueError where a group would be left without a channel.
        """
        widths = {group: kept_channels(width, self.rates.get(group, 0.0)) for group, width in dense.widths.items()}
        for group, width in widths.items():
            if width < 1:
                raise ValueError(f"plan: rate {self.rates[group]} leaves {group} without filters")
        return ResNetSpec(widths, dict(self.ranks))


def kept_channels(width: int, rate: float) -> int:
    """How many of `width` channels stay at a pruning rate.

    Examples:
        >>> kept_channels(64, 0.28)
        46
    """
    return int(width * (1 - rate))


def parse_notation(text: str) -> list[float]:
    """The numbers of a sum of repeated lists. Raises ValueError naming what could not be read.

    Examples:
        >>> parse_notation("[0.]+[0.1]*2+[0.4, 0.5]")
        [0.0, 0.1, 0.1, 0.4, 0.5]
    """
    if not isinstance(text, str):
        raise ValueError(f"plan: expected the paper's notation as text, got {text!r}")
    entries: list[float] = []
    position = 0
    while True:
        match = _TERM.match(text, position)
        if match is None:
            raise ValueError(f"plan {text!r}: expected a list such as [0.1]*3 at {text[position:]!r}")
        repeats = int(match[2] or 1)
        try:
            numbers = [float(number) for number in match[1].split(",")]
        except ValueError:
            raise ValueError(f"plan {text!r}: {match[1]!r} is not a list of numbers") from None
        if len(numbers) * repeats + len(entries) > 10 * _ENTRIES:
            raise ValueError(f"plan {text[:60]!r} has far more than {_ENTRIES} entries")
        entries += numbers * repeats
        position = match.end()
        if position == len(text):
            return entries
        if text[position] != "+":
            raise ValueError(f"plan {text!r}: expected + at {text[position:]!r}")
        position += 1


def load_plan(plan: "str | Path | Mapping[str, Any] | CompressionPlan", rank: int | None = None) -> CompressionPlan:
    """A plan from a preset's name, with or without `-all`, a JSON file, the paper's notation, a mapping or a plan.

    `rank` replaces the rank of every decomposed layer of the body. Raises ValueError for an unknown name or bad
    content.

    Examples:
        >>> load_plan("norton-77", rank=2).ranks["layer1.0.conv2"]
        2
    """
    loaded = _load(plan)
    return loaded if rank is None else replace(loaded, ranks=dict.fromkeys(loaded.ranks, rank))


def _load(plan: "str | Path | Mapping[str, Any] | CompressionPlan") -> CompressionPlan:
    if isinstance(plan, CompressionPlan):
        return plan
    if isinstance(plan, Mapping):
        return CompressionPlan.from_dict(plan)
    text = str(plan)
    preset = text.removesuffix("-all")
    if preset in PRESETS:
        return CompressionPlan.from_notation(PRESETS[preset], parts=None if preset == text else WHOLE_DETECTOR)
    if text.lstrip().startswith("["):
        return CompressionPlan.from_notation(text)
    if os.path.isfile(text):  # also where the text is too long for a name
        try:
            content = json.loads(Path(text).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"plan file {text} is not JSON: {error}") from None
        return CompressionPlan.from_dict(content)
    hint = _nearest(text, PRESETS)
    raise ValueError(f"plan {text!r} is no preset ({', '.join(PRESETS)}, or with -all), no file, no notation{hint}")


def _check_rank(name: str, rank: object) -> None:
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"plan: rank of {name} must be a whole number from 1 on, got {rank!r}")


def _check_name(name: object, valid: Iterable[str], what: str) -> None:
    valid = list(valid)
    if name not in valid:
        raise ValueError(f"plan: {name!r} is no {what}{_nearest(name, valid)}")


def _nearest(name: object, valid: Iterable[str]) -> str:
    match = difflib.get_close_matches(str(name), list(valid), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""
