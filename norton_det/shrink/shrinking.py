"""Turns a trained detector, photos and a goal into a file: measures the levers, chooses, makes, measures, goes on."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from torch import nn

from norton_det.analysis.machine import describe_machine
from norton_det.api import network_categories, reference_findings
from norton_det.deploy.optimize import Runtime
from norton_det.deploy.runtimes import Precision
from norton_det.deploy.writing import files_of
from norton_det.evaluation.agreement import SCORE, Findings
from norton_det.evaluation.consensus import VIEWS
from norton_det.files import atomic_path, sha256
from norton_det.shrink.bench import AsShipped, Reference
from norton_det.shrink.choosing import Deadline, Goal, Option, best
from norton_det.shrink.costs import Costs
from norton_det.shrink.family import Family, find_family, find_smallest
from norton_det.shrink.instruments import Instruments, set_up
from norton_det.shrink.levers import DENSE, SIZES, Choice, all_choices, proposal_counts
from norton_det.shrink.making import Recovery
from norton_det.shrink.measuring import measure_dense, measure_fastest, measure_plans
from norton_det.shrink.memory import Memory
from norton_det.shrink.milestones import tell_file, tell_range, tell_table, warn_of_noise
from norton_det.shrink.photos import Photos
from norton_det.shrink.quality import Quality
from norton_det.shrink.quantising import Int8Report
from norton_det.shrink.searching import predicted, search
from norton_det.shrink.workshop import Made, Workshop

KEPT = "2"
"""The version of what is kept of a measurement."""


@dataclass(frozen=True)
class Asked:
    """Says what is asked for.

    Attributes:
        goal: a deadline or a least agreement.
        runtime: the runtime of the file.
        precisions: the precisions in which it may be run; the first is the dense detector's.
        recovery: how plans are restored.
        sizes: sizes of images, in shares of the detector's own.
        among: tells whether a choice may be made.
    """

    goal: Goal
    runtime: Runtime
    precisions: Sequence[Precision]
    recovery: Recovery
    sizes: Sequence[float] = SIZES
    among: Callable[[Choice], bool] = lambda choice: True


@dataclass(frozen=True)
class Result:
    """Holds the result of shrinking.

    Attributes:
        before: the dense detector as a file for the same runtime.
        after: the chosen detector.
        made: all files that were made, for earlier goals too.
        considered: all choices that could have been made, as predicted in the end.
        is_met: whether the chosen detector meets the goal.
        goal: what was asked for.
        fastest: milliseconds that the fastest choice takes.
        shipped: milliseconds that the dense detector takes as it is shipped, in torch.
        family: the plans.
        int8: what int8 costs the chosen detector, or the dense one if the chosen is not in int8; None without int8.
        moods: the reference's time beside each detector, in multiples of its typical time.
    """

    before: Made
    after: Made
    made: Sequence[Option]
    considered: Sequence[Option]
    is_met: bool
    goal: Goal
    fastest: float
    shipped: float
    family: Family
    int8: Int8Report | None
    moods: Sequence[float]


def shrink(
    dense: nn.Module,
    photos: Photos,
    asked: Asked,
    output: Path,
    folder: Path,
    report: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Write the file that serves the goal best, and keep measurements in a folder for the next goal.

    Each file that is better than those before it is written at once, and `report` is given the result so far.

    Raises ValueError for a detector that is compressed already or finds nothing on the photos, and for a deadline
    that the fastest choice cannot meet.
    """
    memory = Memory(folder)
    with memory.bar:
        return _shrink(memory, dense, photos, asked, output, report)


def _shrink(
    memory: Memory, dense: nn.Module, photos: Photos, asked: Asked, output: Path, report: Callable[[Result], None]
) -> Result:
    memory.begin("1 of 4, plans")
    reference = _reference(memory, dense, photos)
    tools = set_up(memory, dense, photos, asked.runtime, asked.precisions[0], reference)
    counts = proposal_counts(dense)
    smallest, share = find_smallest(memory, dense, photos.fitted[0])
    fastest = measure_fastest(tools.bench, memory, dense, smallest, asked.precisions, counts[-1])
    memory.expect(1)
    shipped = float(memory.recall("time: as shipped", lambda: tools.bench.share(AsShipped(dense))))
    unit = memory.get("unit", tools.stopwatch.unit)
    tell_range(shipped * unit, fastest * unit)
    least = fastest * tools.stopwatch.least
    if isinstance(asked.goal, Deadline) and asked.goal.milliseconds < least:
        told = f"the fastest that can be made here takes {least:.3g} ms"
        raise ValueError(f"{asked.goal} an image: {told}, if nothing else keeps the machine busy")
    family = find_family(memory, dense, photos.fitted, share, asked.recovery.seed)
    costs, quality = _tables(tools, memory, dense, family, asked.precisions, _objects(reference))
    every = all_choices(family.plans, asked.sizes, counts, asked.precisions)
    choices = [choice for choice in every if asked.among(choice)]
    workshop = Workshop(dense, family, photos.fitted, asked.recovery, output.suffix, memory, tools, costs.unit)
    warn_of_noise(tools.stopwatch.moods)
    memory.begin("4 of 4, files")
    before = workshop.make(Choice(DENSE, 1.0, counts[0], asked.precisions[0]))
    tell_file(before.option, "dense")
    known = {choice: option for choice, option in workshop.known().items() if choice in choices}
    tried = dict(known)

    def result(made: Mapping[Choice, Option]) -> Result:
        after = workshop.make(_best_or_nearest(made, asked.goal).choice)
        quantised = after.option.choice if after.option.choice.precision == "int8" else before.option.choice
        return Result(
            before=before,
            after=after,
            made=[*made.values()],
            considered=predicted(choices, costs.corrected(made.values()), quality.corrected(made.values())),
            is_met=asked.goal.is_met(after.option),
            goal=asked.goal,
            fastest=fastest * costs.unit,
            shipped=shipped * costs.unit,
            family=family,
            int8=workshop.int8(quantised.learnt) if "int8" in asked.precisions else None,
            moods=tools.stopwatch.moods,
        )

    def make(choice: Choice) -> Option:
        made = workshop.make(choice)
        tried[choice] = made.option
        is_best = _best_or_nearest(tried, asked.goal).choice == choice
        tell_file(made.option, f"{output}, the best so far" if is_best else "not better")
        if is_best:
            _copy(made.path, output)
            report(result(tried))
        return made.option

    found = result(search(choices, costs, quality, asked.goal, make, known))
    _copy(found.after.path, output)
    report(found)
    return found


def _best_or_nearest(options: Mapping[Choice, Option], goal: Goal) -> Option:
    return best(options.values(), goal) or goal.nearest([*options.values()])


def _copy(made: Path, output: Path) -> None:
    """Copy a detector's file to its place, the one that names the others last."""
    for source, target in reversed([*zip(files_of(made), files_of(output), strict=True)]):
        with atomic_path(target) as temporary:
            copyfile(source, temporary)


def digest(weights: Sequence[Path], photos: Photos, asked: Asked) -> str:
    """Compute a digest of all that measurements depend on: the files that make the detector, photos, the runtime and
    precision of the reference call, the seed, this machine, and how agreement is measured."""
    machine = describe_machine(torch.device("cpu"))
    told = KEPT, asked.runtime, asked.precisions[0], str(asked.recovery.seed), machine, str(VIEWS)
    seen = hashlib.sha256(" ".join(told).encode())
    for path in [*weights, *photos.fitted.paths, *photos.held.paths]:
        seen.update(sha256(path).encode())
    return seen.hexdigest()[:12]


def _reference(memory: Memory, dense: Any, photos: Photos) -> Reference:
    """Return what the dense detector finds on the held-back photos. Raises ValueError if that is nothing."""
    memory.expect(1)

    def measured() -> dict[str, Any]:
        own, truth = reference_findings(dense, photos.held, SCORE)
        return {"task": own.task, "own": own.results, "truth": truth.results}

    seen = memory.recall_apart("reference", measured)
    own, truth = (
        Findings(seen[name], len(photos.held), network_categories(dense), seen["task"]) for name in ("own", "truth")
    )
    reference = Reference(own, truth)
    if not _objects(reference):
        told = f"the detector finds nothing of a score of at least {SCORE:g} on {reference.own.images} photos"
        raise ValueError(told)
    return reference


def _objects(reference: Reference) -> int:
    """Return the mean number of objects in a photo, rounded up."""
    return math.ceil(sum(bool(r["score"] >= SCORE) for r in reference.truth.results) / reference.own.images)


def _tables(
    tools: Instruments, memory: Memory, dense: nn.Module, family: Family, precisions: Sequence[Precision], found: int
) -> tuple[Costs, Quality]:
    memory.begin("2 of 4, sizes, proposals and precisions")
    table = measure_dense(tools.bench, memory, dense, precisions, proposal_counts(dense))
    memory.expect(1)
    unit = float(memory.recall("unit", lambda: tools.stopwatch.unit))  # kept: choices must not change with the mood
    tell_table(table, unit)
    memory.begin("3 of 4, times of plans")
    lines = measure_plans(tools.bench, memory, dense, family.plans, precisions, found)
    return (
        Costs(table.times, table.by_proposals, lines, unit),
        Quality(table.sizes, table.proposals, table.precisions, family.errors),
    )
