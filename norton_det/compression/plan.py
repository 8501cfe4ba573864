"""Defines compression plans: which layers are decomposed at which rank, which tied channels lose which share."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from norton_det.models.channels import STEM, Body
from norton_det.models.parts import LINEAR_PART, PARTS
from norton_det.names import did_you_mean

NONE = "none"
PRESETS = {
    "norton-43": "[0.]+[0.1]*3+[0.02]*16",
    "norton-47": "[0.]+[0.115]*3+[0.1]*16",
    "norton-59": "[0.]+[0.28]*19",
    "norton-69": "[0.]+[0.45]*19",
    "norton-77": "[0.]+[0.1]*2+[0.4]*5+[0.75]*12",
}
"""The rank-1 plans for ResNet-50, named by the percentage of parameters that they remove."""
_PRESET_BLOCKS = (3, 4, 6, 3)
WHOLE_DETECTOR = {part: 128 if part == LINEAR_PART else 1 for part in PARTS}
"""The rank of each other part of a detector under a preset whose name ends in `-all`."""

_TERM = re.compile(r"\s*\[\s*([^\[\]]*?)\s*\]\s*(?:\*\s*(\d{1,4000})\s*)?")
_MOST_ENTRIES = 10_000


@dataclass(frozen=True)
class CompressionPlan:
    """Sets a rank for each layer to decompose (others stay dense) and a pruning rate for each channel group.

    `ranks`: CP rank (at least 1) by layer name. `rates`: share of filters to drop, in [0, 1), by group name; a group
    that is not named loses nothing. `parts`: the rank of the layers of a detector's other parts, by part (CP rank of
    convolutions, rank of the box head's linear layers); a part that a model lacks is passed over. `dropped`: the
    blocks that are left out whole, so that their inputs are handed on; a stage keeps its first block. Names are the
    dense network's. Raises ValueError for a rank, rate or part that is not valid; `check` says whether a body has the
    names.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for layer, rank in self.ranks.items():
            _check_rank(layer, rank)
        for part, rank in self.parts.items():
            _check_name(part, PARTS, "part of a detector")
            _check_rank(part, rank)
        for group, rate in self.rates.items():
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise ValueError(f"plan: rate of {group} must lie in [0, 1), got {rate!r}")

    def check(self, body: Body) -> None:
        """Raise ValueError for a layer or group that a body does not have, for a rate on channels that a grouped
        convolution fixes, or for one that leaves a group without filters."""
        for layer in self.ranks:
            _check_name(layer, body.spatial, "layer to decompose")
        blocks = {block.name: block for block in body.blocks}
        for name in self.dropped:
            _check_name(name, blocks, "block")
            if blocks[name].is_first:
                raise ValueError(f"plan: {name} cannot be dropped: what enters it has other channels or another size")
        for group, rate in self.rates.items():
            _check_name(group, body.groups, "channel group")
            if rate and body.groups[group].fixed:
                raise ValueError(f"plan: a grouped convolution fixes the channels of {group}: rate 0, got {rate}")
            if kept_channels(body.groups[group].width, rate) < 1:
                raise ValueError(f"plan: rate {rate} leaves {group} without filters")

    @classmethod
    def from_notation(
        cls, text: str, body: Body, rank: int = 1, parts: Mapping[str, int] | None = None
    ) -> "CompressionPlan":
        """Read the paper's notation for a body: a sum of repeated lists such as `[0.]+[0.1]*2+[0.4]*5+[0.75]*12`.

        The first entry is the stem, the next ones are the outputs of all stages but the last, the others the inner
        width of each block; every convolution of more than a pixel gets `rank`. Where sums tie the stem to the first
        stage, as in a ResNet-18 or -34, the first two entries must agree. Raises ValueError for any other text or
        length.
        """
        entries = parse_notation(text)
        outputs = [STEM, *body.stages[:-1]]
        if len(entries) != len(outputs) + len(body.blocks):
            raise ValueError(
                f"plan {text!r} has {len(entries)} entries; {describe_body(body)} takes"
                f" {len(outputs) + len(body.blocks)}: the stem, {len(outputs) - 1} outputs of stages,"
                f" {len(body.blocks)} blocks"
            )
        rates = dict(zip(outputs, entries, strict=False))
        if STEM not in body.groups and rates.pop(STEM) != rates[body.stages[0]]:
            raise ValueError(
                f"plan {text!r}: in {describe_body(body)} sums tie the stem to {body.stages[0]}: the first two"
                f" entries must agree, got {entries[0]} and {entries[1]}"
            )
        for block, rate in zip(body.blocks, entries[len(outputs) :], strict=True):
            rates |= dict.fromkeys(block.inner, rate)
        return cls(dict.fromkeys(body.spatial, rank), rates, dict(parts or {}))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], body: Body) -> "CompressionPlan":
        """Read a plan from `{"ranks": .., "rates": ..}` or `{"notation": .., "rank": ..}`; `"parts"` may be beside.

        Raises ValueError for anything else.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"a plan is a mapping with ranks and rates, got {type(data).__name__}")
        if not isinstance(data.get("dropped", []), list | tuple):
            raise ValueError("plan: dropped must be a list of blocks")
        for key in ("ranks", "rates", "parts"):
            if not isinstance(data.get(key, {}), Mapping):
                raise ValueError(f"plan: {key} must be a mapping from names to numbers")
        if "notation" in data and set(data) <= {"notation", "rank", "parts"}:
            return cls.from_notation(data["notation"], body, data.get("rank", 1), data.get("parts"))
        if not set(data) <= {"ranks", "rates", "parts", "dropped"}:
            raise ValueError(
                f"a plan has ranks, rates and dropped blocks, or notation and rank, and parts; got {list(data)}"
            )
        ranks, rates, parts = (dict(data.get(key, {})) for key in ("ranks", "rates", "parts"))
        return cls(ranks, rates, parts, tuple(data.get("dropped", ())))

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, ready for JSON; `from_dict` reads them back."""
        named = {"ranks": dict(self.ranks), "rates": dict(self.rates), "parts": dict(self.parts)}
        return named | ({"dropped": list(self.dropped)} if self.dropped else {})

    def drops(self, layer: str) -> bool:
        """Tell whether a layer, or its channels, go with a dropped block."""
        return layer.startswith(tuple(f"{block}." for block in self.dropped))

    def renumbered(self, body: Body) -> "CompressionPlan":
        """Return the plan for the body without the dropped blocks, where the other blocks have moved up."""
        names = remaining_blocks(body, self.dropped)
        ranks = {renamed(layer, names): rank for layer, rank in self.ranks.items() if not self.drops(layer)}
        rates = {renamed(group, names): rate for group, rate in self.rates.items() if not self.drops(group)}
        return CompressionPlan(ranks, rates, self.parts)


def remaining_blocks(body: Body, dropped: Iterable[str]) -> dict[str, str]:
    """Map each remaining block's name to its name in the body without the dropped ones, in the data's order."""
    gone = set(dropped)
    names: dict[str, str] = {}
    for stage in body.stages:
        kept = [block.name for block in body.blocks if block.stage == stage and block.name not in gone]
        names |= {name: f"{stage}.{place}" for place, name in enumerate(kept)}
    return names


def renamed(layer: str, blocks: Mapping[str, str]) -> str:
    """Return the name of a layer, or of its channels, with its block's name replaced, if it is in a block."""
    block = ".".join(layer.split(".")[:2])
    return blocks.get(block, block) + layer.removeprefix(block)


PlanLike: TypeAlias = str | Path | Mapping[str, Any] | CompressionPlan
"""What `load_plan` takes."""


def describe_body(body: Body) -> str:
    """Name a body in a few words.

    Examples:
        >>> from torchvision.models import resnet18
        >>> from norton_det.models.channels import read_body
        >>> describe_body(read_body(resnet18()))
        'a ResNet-18'
    """
    return f"a ResNet-{body.depth}"


def kept_channels(width: int, rate: float) -> int:
    """Return how many of `width` channels stay at a pruning rate.

    Examples:
        >>> kept_channels(64, 0.28)
        46
    """
    return int(width * (1 - rate))


def parse_notation(text: str) -> list[float]:
    """Return the numbers of a sum of repeated lists. Raises ValueError naming what could not be read.

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
        if len(numbers) * repeats + len(entries) > _MOST_ENTRIES:
            raise ValueError(f"plan {text[:60]!r} has more than {_MOST_ENTRIES} entries")
        entries += numbers * repeats
        position = match.end()
        if position == len(text):
            return entries
        if text[position] != "+":
            raise ValueError(f"plan {text!r}: expected + at {text[position:]!r}")
        position += 1


def load_plan(plan: PlanLike, body: Body, rank: int | None = None) -> CompressionPlan:
    """Load a body's plan from a preset's name (also with `-all`), a JSON file, the notation, a mapping, a plan, or
    `none` for one that changes nothing.

    `rank` replaces the rank of every decomposed layer of the body. Raises ValueError for an unknown name, bad
    content, or a plan that this body cannot have.

    Examples:
        >>> from torchvision.models import resnet50
        >>> from norton_det.models.channels import read_body
        >>> load_plan("norton-77", read_body(resnet50()), rank=2).ranks["layer1.0.conv2"]
        2
    """
    loaded = _load(plan, body)
    loaded.check(body)
    return loaded if rank is None else replace(loaded, ranks=dict.fromkeys(loaded.ranks, rank))


def _load(plan: PlanLike, body: Body) -> CompressionPlan:
    if isinstance(plan, CompressionPlan):
        return plan
    if isinstance(plan, Mapping):
        return CompressionPlan.from_dict(plan, body)
    text = str(plan)
    if text == NONE:
        return CompressionPlan()
    preset = text.removesuffix("-all")
    if preset in PRESETS:
        return _preset(preset, body, None if preset == text else WHOLE_DETECTOR)
    if text.lstrip().startswith("["):
        return CompressionPlan.from_notation(text, body)
    if os.path.isfile(text):  # also where the text is too long for a name
        try:
            content = json.loads(Path(text).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"plan file {text} is not JSON: {error}") from None
        return CompressionPlan.from_dict(content, body)
    hint = did_you_mean(text, PRESETS)
    raise ValueError(f"plan {text!r} is no preset ({', '.join(PRESETS)}, or with -all), no file, no notation{hint}")


def _preset(name: str, body: Body, parts: Mapping[str, int] | None) -> CompressionPlan:
    is_bottleneck = all(len(block.convs) == 3 for block in body.blocks)
    if not is_bottleneck or body.blocks_of_stages != _PRESET_BLOCKS:
        blocks = len(body.stages) + len(body.blocks)
        raise ValueError(
            f"plan {name!r} is made for a ResNet-50's blocks, not for {describe_body(body)}: give the paper's"
            f" notation with {blocks} entries, or let search-plan find a plan"
        )
    return CompressionPlan.from_notation(PRESETS[name], body, parts=parts)


def _check_rank(name: str, rank: object) -> None:
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"plan: rank of {name} must be a whole number from 1 on, got {rank!r}")


def _check_name(name: object, valid: Iterable[str], what: str) -> None:
    valid = list(valid)
    if name not in valid:
        raise ValueError(f"plan: {name!r} is no {what}{did_you_mean(str(name), valid)}")
