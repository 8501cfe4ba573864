"""Measures the tables, each value once: times and agreements of the dense detector by lever, and times of plans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

from scipy.optimize import isotonic_regression
from torch import nn

from norton_det.compression.plan import CompressionPlan
from norton_det.compression.search.budget import Scope
from norton_det.deploy.runtimes import Precision
from norton_det.deploy.treatments import fix_workload
from norton_det.models.initial import initialise
from norton_det.shrink.bench import Bench, Built, at_size
from norton_det.shrink.costs import Line
from norton_det.shrink.levers import SIZES, set_levers
from norton_det.shrink.memory import Memory

Amount = TypeVar("Amount", int, float)


@dataclass(frozen=True)
class DenseTable:
    """Holds the dense detector's times, and its agreement with itself as shipped, one lever at a time.

    Attributes:
        times: times with all proposals, in shares of a reference call's, by precision and size.
        by_proposals: times at full size, by precision and number of proposals.
        sizes, proposals, precisions: agreement in shares of 1; by size and by number of proposals relative to full
            size and all proposals.
    """

    times: Mapping[Precision, Mapping[float, float]]
    by_proposals: Mapping[Precision, Mapping[int, float]]
    sizes: Mapping[float, float]
    proposals: Mapping[int, float]
    precisions: Mapping[Precision, float]


def measure_dense(
    bench: Bench, memory: Memory, dense: nn.Module, precisions: Sequence[Precision], counts: Sequence[int]
) -> DenseTable:
    """Measure the dense detector in each precision and, with the first, at each number of proposals.

    `counts` begin with its own number of proposals and end with the least; the other precisions are measured at these
    two, and scaled between them.
    """
    first, own, least = precisions[0], counts[0], counts[-1]
    memory.expect(len(SIZES) * (len(precisions) + 1) + 2 * (len(counts) - 1) + 2 * (len(precisions) - 1))

    @lru_cache(maxsize=1)
    def built(precision: Precision, proposals: int) -> Built:
        return bench.build(set_levers(dense, dense, 1.0, proposals), precision)

    def time(precision: Precision, proposals: int, size: float = 1.0) -> float:
        name = f"time: {precision}, {proposals} proposals, size {size:g}"
        return float(memory.recall(name, lambda: bench.share(at_size(built(precision, proposals), dense, size))))

    def share(precision: Precision, proposals: int, size: float = 1.0) -> float:
        name = f"agreement: {precision}, {proposals} proposals, size {size:g}"
        measured = memory.recall(name, lambda: bench.agreement(at_size(built(precision, proposals), dense, size)))
        return float(measured) / 100

    by_size, by_count, of_precision = {}, {}, {}
    for precision in precisions:
        by_size[precision] = {size: time(precision, own, size) for size in SIZES}
        if precision == first:
            of_size = {size: share(first, own, size) for size in SIZES}
        of_precision[precision] = of_size[1.0] if precision == first else share(precision, own)
    of_count = {own: of_size[1.0]}
    by_count[first] = {own: by_size[first][1.0]}
    for count in counts[1:]:
        by_count[first][count] = time(first, count)
        of_count[count] = share(first, count)
    for precision in precisions[1:]:
        at_own = by_size[precision][1.0]
        at_least = time(precision, least) if least != own else at_own
        by_count[precision] = _stretched(by_count[first], own, least, at_own, at_least)
    whole = of_size[1.0] or 1.0
    return DenseTable(
        {precision: _rising(times) for precision, times in by_size.items()},
        {precision: _rising(times) for precision, times in by_count.items()},
        {size: value / whole for size, value in of_size.items()},
        {count: value / whole for count, value in of_count.items()},
        of_precision,
    )


def _rising(times: Mapping[Amount, float]) -> dict[Amount, float]:
    """Return the nearest times that nowhere fall as the amount of work grows: where they did, that was noise."""
    amounts = sorted(times)
    fitted = isotonic_regression([times[amount] for amount in amounts]).x
    return dict(zip(amounts, map(float, fitted), strict=True))


def _stretched(times: Mapping[int, float], own: int, least: int, at_own: float, at_least: float) -> dict[int, float]:
    """Stretch another precision's times by number of proposals to the two known ones, at `own` and at `least`."""
    saved = times[own] - times[least]
    scale = max(0.0, at_own - at_least) / saved if saved > 0 else 0.0
    return {count: at_own + scale * (taken - times[own]) for count, taken in times.items()}


def measure_plans(
    bench: Bench,
    memory: Memory,
    dense: nn.Module,
    plans: Mapping[str, CompressionPlan],
    precisions: Sequence[Precision],
    found: int,
) -> dict[tuple[str, Precision], Line]:
    """Measure the times of plans, the smallest first and the one that changes nothing last, by `measure_plan`.

    In the first precision all are measured; in the others only these two, and the rest is scaled as in the first.
    """

    def line(name: str, precision: Precision) -> Line:
        return measure_plan(bench, memory, dense, name, plans[name], precision, found)

    first, (smallest, *_, last) = precisions[0], plans
    lines = {(name, first): line(name, first) for name in plans}
    for precision in precisions[1:]:
        ends = line(smallest, precision), line(last, precision)
        for name in plans:
            share = lines[name, first].share_between(lines[smallest, first], lines[last, first])
            lines[name, precision] = ends[0].towards(ends[1], share)
    return lines


def measure_plan(
    bench: Bench, memory: Memory, dense: nn.Module, name: str, plan: CompressionPlan, precision: Precision, found: int
) -> Line:
    """Measure the time of a plan in a precision, by a fixed workload that finds `found` objects."""
    memory.expect(2)

    @lru_cache(maxsize=1)
    def built() -> Built:
        return bench.sketch(workload(dense, plan, found), precision)

    def time(size: float) -> float:
        told = f"time of a fixed workload: plan {name}, {precision}, size {size:g}"
        return float(memory.recall(told, lambda: bench.share(at_size(built(), dense, size))))

    return Line.through(time(SIZES[0]), time(SIZES[-1]), SIZES[-1])


def measure_fastest(
    bench: Bench, memory: Memory, dense: nn.Module, plan: CompressionPlan, precisions: Sequence[Precision], count: int
) -> float:
    """Measure the time of the smallest plan at the smallest size with `count` proposals, where one object is found.

    It is the time in the fastest of the precisions, measured like `measure_plan`: nothing that could be made takes
    less.
    """
    memory.expect(len(precisions))
    network = workload(set_levers(dense, dense, SIZES[-1], count), plan, found=1)

    def share(precision: Precision) -> float:
        return bench.share(bench.sketch(network, precision))

    return min(
        float(memory.recall(f"time: the fastest possible, {precision}", partial(share, precision)))
        for precision in precisions
    )


def workload(dense: nn.Module, plan: CompressionPlan, found: int) -> nn.Module:
    """Return a detector of a plan with random weights that works like a trained one that finds `found` objects."""
    network = initialise(Scope(dense, True, None).network(plan)).eval()
    fix_workload(network, found)
    return network
