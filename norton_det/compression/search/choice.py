"""Finds the best combination of options under a budget: a knapsack with one choice an item, whose prices depend on
tied widths.

A *group* (channels tied by a residual sum) takes one of its levels. An *item* (a block, or a part of a detector)
takes one of its options; what the option costs depends on the levels of up to two groups, because a convolution
costs its inputs times its outputs. All errors add up, all costs add up.

It is solved as one mixed-integer linear programme, by branch and bound (HiGHS, through `scipy.optimize.milp`). Given
the groups' levels the problem would fall apart into a knapsack each, but enumerating the levels means hundreds of
knapsacks; in one programme the linear relaxation bounds all of them at once, and the solver proves its gap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

RELATIVE_GAP = 1e-4
"""The solution's error exceeds the optimum by at most this share."""
FEASIBILITY = 1e-6
"""The share of the largest single cost by which the solver may overdraw a budget; that much is held back."""

Levels = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """Holds what one level or option adds to the error and to the cost."""

    error: float
    cost: float


@dataclass(frozen=True)
class Item:
    """Options whose costs depend on groups: `errors` (options,), and `costs` (options,) for each tuple of the levels
    of `groups` (none, one or two)."""

    errors: Sequence[float]
    costs: Mapping[Levels, Sequence[float]]
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Solution:
    """Holds the level of each group and the option of each item, by index, and the sums."""

    levels: dict[str, int]
    options: dict[str, int]
    error: float
    cost: float


def cheapest(groups: Mapping[str, Sequence[Choice]], items: Mapping[str, Item]) -> float:
    """Return the smallest budget that `solve` takes: the cost of the cheapest combination, and what is held back."""
    return _solve(groups, items, None).cost + 2 * FEASIBILITY * _largest_cost(groups, items)


def solve(groups: Mapping[str, Sequence[Choice]], items: Mapping[str, Item], budget: float) -> Solution:
    """Find the combination of least error whose cost is at most `budget`, to within RELATIVE_GAP.

    Raises ValueError where none is cheap enough.
    """
    return _solve(groups, items, budget)


def _largest_cost(groups: Mapping[str, Sequence[Choice]], items: Mapping[str, Item]) -> float:
    of_groups = [abs(choice.cost) for choices in groups.values() for choice in choices]
    of_items = [abs(cost) for item in items.values() for costs in item.costs.values() for cost in costs]
    return max(of_groups + of_items) or 1.0


@dataclass
class _Programme:
    """Holds binary columns, each with an error and a cost, and rows of equations over them."""

    errors: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    entries: list[tuple[int, int, float]] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)

    def column(self, error: float, cost: float) -> int:
        self.errors.append(error)
        self.costs.append(cost)
        return len(self.errors) - 1

    def equation(self, plus: Sequence[int], minus: Sequence[int], total: float) -> None:
        """Require that the columns `plus` less the columns `minus` add up to `total`."""
        row = len(self.sums)
        self.entries += [(row, column, 1.0) for column in plus] + [(row, column, -1.0) for column in minus]
        self.sums.append(total)


def _solve(groups: Mapping[str, Sequence[Choice]], items: Mapping[str, Item], budget: float | None) -> Solution:
    """Find the solution of least error within the budget; without one, of least cost."""
    programme = _Programme()
    level_columns = {
        name: [programme.column(choice.error, choice.cost) for choice in choices] for name, choices in groups.items()
    }
    for columns in level_columns.values():
        programme.equation(columns, [], 1)
    option_columns: dict[str, dict[int, int]] = {}
    for name, item in items.items():
        by_levels = {levels: _columns(programme, item, levels) for levels in _all_levels(item, groups)}
        option_columns[name] = {column: option for columns in by_levels.values() for option, column in columns}
        if not item.groups:
            programme.equation(list(option_columns[name]), [], 1)
        for place, group in enumerate(item.groups):
            for level, level_column in enumerate(level_columns[group]):
                inside = [
                    column for levels, pairs in by_levels.items() if levels[place] == level for _, column in pairs
                ]
                programme.equation(inside, [level_column], 0)
    chosen = _optimise(programme, budget, _largest_cost(groups, items))
    return Solution(
        {name: next(i for i, c in enumerate(columns) if chosen[c]) for name, columns in level_columns.items()},
        {name: next(o for c, o in columns.items() if chosen[c]) for name, columns in option_columns.items()},
        float(np.array(programme.errors)[chosen].sum()),
        float(np.array(programme.costs)[chosen].sum()),
    )


def _all_levels(item: Item, groups: Mapping[str, Sequence[Choice]]) -> list[Levels]:
    return list(product(*(range(len(groups[group])) for group in item.groups)))


def _columns(programme: _Programme, item: Item, levels: Levels) -> list[tuple[int, int]]:
    """Add the columns of the options that no other one beats in both error and cost: (option, column) pairs."""
    costs = item.costs[levels]
    order = sorted(range(len(costs)), key=lambda option: (costs[option], item.errors[option]))
    columns, least = [], np.inf
    for option in order:
        if item.errors[option] < least:
            least = item.errors[option]
            columns.append((option, programme.column(least, costs[option])))
    return columns


def _optimise(programme: _Programme, budget: float | None, unit: float) -> NDArray[np.bool_]:
    """Return the taken columns, (columns,). Errors and costs (by `unit`) are scaled: tolerances are absolute."""
    rows, columns, values = zip(*programme.entries, strict=True)
    count = len(programme.errors)
    equations = coo_array((values, (rows, columns)), shape=(len(programme.sums), count)).tocsc()
    constraints = [LinearConstraint(equations, programme.sums, programme.sums)]
    errors, costs = np.array(programme.errors), np.array(programme.costs)
    if budget is not None:
        constraints.append(LinearConstraint(costs[None] / unit, -np.inf, budget / unit - FEASIBILITY))
    result = milp(
        costs / unit if budget is None else errors / (errors.max() or 1.0),
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": RELATIVE_GAP},
    )
    if result.x is None:
        raise ValueError(f"no combination costs {budget:g} or less")
    return np.asarray(result.x > 0.5)
