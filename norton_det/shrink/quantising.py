"""Finds how int8 does least harm: the better preset, with parts in floating point that cost more than they save.

Parts are tried on the models that are quantised once for each preset: a part is put back to floating point, and
nothing is calibrated anew.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from norton_det.deploy.int8 import PRESETS, Int8Recipe, Preset, quantised_parts, restore_parts
from norton_det.deploy.openvino import quantize
from norton_det.deploy.optimize import openvino_model
from norton_det.deploy.runtimes import compile_openvino
from norton_det.shrink.memory import Memory

WORTH = 20.0
"""Points of agreement that are worth twice the time: 0.2 points for each percent of time."""
HARMLESS = 0.3
"""Points that int8 may cost before parts are looked at one by one."""


@dataclass(frozen=True)
class Seen:
    """Holds what a model showed: its time in any unit, and its agreement, 0 to 100."""

    time: float
    agreement: float

    def beats(self, other: "Seen") -> bool:
        """Tell whether its agreement is worth its time, compared with another."""
        return self.agreement - other.agreement > WORTH * (self.time / other.time - 1)


Look = Callable[[Any], Seen]
"""Measures a model of OpenVINO."""


@dataclass(frozen=True)
class Int8Report:
    """Holds what int8 costs, and what was done about it.

    Attributes:
        recipe: the chosen recipe.
        floating: what the model shows in floating point.
        presets: what it shows with each preset, all parts quantised.
        parts: what it shows with the better preset, each part alone left in floating point.
        chosen: what it shows with the recipe.
    """

    recipe: Int8Recipe
    floating: Seen
    presets: Mapping[Preset, Seen]
    parts: Mapping[str, Seen]
    chosen: Seen


def find_recipe(detector: nn.Module, photos: Sequence[Tensor], look: Look) -> Int8Report:
    """Find the best recipe to quantise a detector; its ranges are taken from the photos."""
    original = openvino_model(detector, photos[:1], "float32")
    models = {preset: quantize(original, detector, photos, Int8Recipe(preset)) for preset in PRESETS}
    presets = {preset: look(model) for preset, model in models.items()}
    preset, *others = PRESETS
    for other in others:
        preset = other if presets[other].beats(presets[preset]) else preset

    def with_parts(parts: Sequence[str]) -> Seen:
        model = models[preset].clone()
        restore_parts(model, original, parts)
        return look(model)

    floating = look(original)
    is_harmless = presets[preset].agreement > floating.agreement - HARMLESS
    candidates = [] if is_harmless else quantised_parts(models[preset])
    parts, in_float, chosen = leave_out(candidates, presets[preset], with_parts)
    return Int8Report(Int8Recipe(preset, in_float), floating, presets, parts, chosen)


def leave_out(
    parts: Sequence[str], quantised: Seen, with_parts: Callable[[Sequence[str]], Seen]
) -> tuple[dict[str, Seen], tuple[str, ...], Seen]:
    """Choose the parts to leave in floating point, greedily.

    The part that gains most alone comes first, then each next one that beats what there is. Returns what each part
    shows alone, the chosen parts, and what these show together.
    """
    alone = {part: with_parts([part]) for part in parts}
    chosen, left = quantised, tuple[str, ...]()
    for part in sorted(alone, key=lambda part: alone[part].agreement, reverse=True):
        if not alone[part].beats(quantised):
            continue
        seen = with_parts([*left, part]) if left else alone[part]
        if seen.beats(chosen):
            chosen, left = seen, (*left, part)
    return alone, left, chosen


@dataclass(frozen=True)
class Recipes:
    """Finds how each detector is quantised, once.

    Attributes:
        memory: keeps what was found.
        photos: the photos from which ranges are taken.
        time, agreement: measure a built detector.
    """

    memory: Memory
    photos: Sequence[Tensor]
    time: Callable[[Any], float]
    agreement: Callable[[Any], float]

    def of(self, name: str, detector: Callable[[], nn.Module]) -> Int8Report:
        """Return the report on the detector of a name, which is made now if there is none yet."""
        self.memory.expect(1)
        found = self.memory.recall(f"int8: {name}", lambda: asdict(find_recipe(detector(), self.photos, self._look)))
        return Int8Report(
            Int8Recipe(found["recipe"]["preset"], tuple(found["recipe"]["in_float"])),
            Seen(**found["floating"]),
            {preset: Seen(**seen) for preset, seen in found["presets"].items()},
            {part: Seen(**seen) for part, seen in found["parts"].items()},
            Seen(**found["chosen"]),
        )

    def _look(self, model: Any) -> Seen:
        built = compile_openvino(model, "float32", "a model that is tried")
        return Seen(self.time(built), self.agreement(built))
