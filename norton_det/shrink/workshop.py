"""Makes files of choices and measures them, each once, whatever goals ask for it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from norton_det.analysis.complexity import count_detector, total
from norton_det.data.reading import Task
from norton_det.deploy.int8 import PLAIN
from norton_det.models.norms import unfreeze_batch_norms
from norton_det.shrink.bench import points
from norton_det.shrink.choosing import Option
from norton_det.shrink.family import Family, seen_size
from norton_det.shrink.instruments import Instruments
from norton_det.shrink.levers import NOTHING, Choice, Learnt, set_levers
from norton_det.shrink.making import Recovery, file_size, load, restored, write
from norton_det.shrink.memory import Memory
from norton_det.shrink.quantising import Int8Report

Figures = Mapping[str, float | None]
"""Agreements, 0 to 100, by name; None where there is nothing to agree on."""


@dataclass(frozen=True)
class Made:
    """Holds a file that was made and measured.

    Attributes:
        option: the choice, its milliseconds for an image, and its agreement.
        p95: the 95th percentile of the milliseconds.
        interval: the 95 % interval of the agreement if the photos were drawn anew.
        by_image: F1 on each held-back photo.
        metrics: agreement of boxes and, where they are found, masks or keypoints: at all IoUs, at some, by size.
        by_category: agreement in each category, likewise.
        matching_score: the score from which it finds as many objects as the dense detector from SCORE on; None if it
            finds nothing.
        parameters, macs: the network's parameters, and its MACs for a photo.
        bytes: the size of the file.
        path: the path of the file.
    """

    option: Option
    p95: float
    interval: tuple[float, float]
    by_image: tuple[float, ...]
    metrics: Mapping[Task, Figures]
    by_category: Mapping[Task, Figures]
    matching_score: float | None
    parameters: int
    macs: int
    bytes: int
    path: Path


@dataclass(frozen=True)
class Workshop:
    """Makes choices of a dense detector as files for one runtime.

    Attributes:
        dense: the detector.
        family: its plans.
        photos: the photos on which plans are restored.
        recovery: how plans are restored.
        suffix: the ending of the files.
        memory: keeps the files and their measurements.
        tools: measure the files.
        unit: milliseconds of the reference call, in shares of which times are kept.
    """

    dense: nn.Module
    family: Family
    photos: Sequence[Tensor]
    recovery: Recovery
    suffix: str
    memory: Memory
    tools: Instruments
    unit: float

    def make(self, choice: Choice) -> Made:
        """Write the file of a choice and measure it, unless that was done before."""
        name = self._name(choice)
        path = self.memory.folder / f"{name}{self.suffix}"
        self.memory.expect(2)

        def written() -> dict[str, Any]:
            detector = self._restored(choice.learnt)
            changed = set_levers(detector, self.dense, choice.size, choice.proposals)
            recipe = self.int8(choice.learnt).recipe if choice.precision == "int8" else PLAIN
            write(changed, path, choice.precision, self.tools.recipes.photos, recipe)
            unfreeze_batch_norms(changed)  # those of restored detectors are counted as parameters
            counts = total(count_detector(changed, *seen_size(changed, self.photos[0])))
            return {"parameters": counts.parameters, "macs": counts.macs, "bytes": file_size(path)}

        if not path.is_file():
            self.memory.forget(f"made: {name}")
        file = self.memory.recall(f"made: {name}", written)

        def measured() -> dict[str, Any]:
            built = load(path, choice.precision, self.photos[0])
            timed, agreement = self.tools.stopwatch.time(built), self.tools.compare(built)
            task = [*agreement.tasks.values()][-1]
            return {
                "choice": asdict(choice),
                "typical": timed.typical,
                "p95": timed.p95,
                "agreement": points(agreement),
                "interval": task.interval,
                "by_image": task.by_image,
                "metrics": {name: values.metrics for name, values in agreement.tasks.items()},
                "matching_score": agreement.matching_score,
                "by_category": {name: values.by_category for name, values in agreement.tasks.items()},
            }

        seen = self.memory.recall(f"measured: {name}", measured)
        return Made(
            self._option(seen),
            seen["p95"] * self.unit,
            tuple(seen["interval"]),
            tuple(seen["by_image"]),
            seen["metrics"],
            seen["by_category"],
            seen["matching_score"],
            file["parameters"],
            file["macs"],
            file["bytes"],
            path,
        )

    def int8(self, learnt: Learnt) -> Int8Report:
        """Return the best recipe to quantise a restored detector, and what it costs."""
        return self.tools.recipes.of(self._name(learnt), lambda: self._restored(learnt))

    def known(self) -> dict[Choice, Option]:
        """Return the options that were made before; those that had to learn must have had the same recovery."""
        seen = self.memory.known("measured: ")
        options = [self._option(value) for value in seen.values()]
        return {
            option.choice: option
            for option in options
            if option.choice.plan in self.family.plans and self._name(option.choice) in seen
        }

    def _restored(self, learnt: Learnt) -> nn.Module:
        plan = self.family.plans[learnt.plan]
        return restored(self.memory.folder, self.dense, learnt, plan, self.photos, self.recovery)

    def _name(self, what: Choice | Learnt) -> str:
        learnt = what.learnt if isinstance(what, Choice) else what
        return str(what) if learnt == NOTHING else f"{what}; {self.recovery}"

    def _option(self, seen: dict[str, Any]) -> Option:
        return Option(Choice(**seen["choice"]), seen["typical"] * self.unit, seen["agreement"])
