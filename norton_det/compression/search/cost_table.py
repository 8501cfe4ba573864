"""Lists what every choice that a plan makes would cost, as a knapsack whose errors are still open."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from norton_det.analysis.complexity import OUTSIDE_TOTAL
from norton_det.compression.plan import kept_channels
from norton_det.compression.search.budget import BudgetKind, Scope
from norton_det.compression.search.choice import Choice, Item, Levels, cheapest
from norton_det.compression.search.options import DROPPED, PART_RANKS, RATES, block_options, pruned_stages
from norton_det.compression.search.prices import Price, Site
from norton_det.models.channels import Block
from norton_det.models.parts import LINEAR_PART

Rates = Mapping[str, float]
"""Pruning rates by group; a group that is not named has rate 0."""


@dataclass(frozen=True)
class CostTable:
    """Holds the costs of all choices, with errors 0; a network costs `fixed` and the costs of what is chosen.

    `groups`: the stage outputs, a level a rate; `items`: the blocks and a detector's parts.
    """

    fixed: float
    groups: Mapping[str, Sequence[Choice]]
    items: Mapping[str, Item]

    @property
    def least(self) -> float:
        """Return the cost of the cheapest network."""
        return self.fixed + cheapest(self.groups, self.items)


def cost_table(scope: Scope, kind: BudgetKind, dense_cost: float) -> CostTable:
    """Make the table of a scope whose dense network costs `dense_cost`; `fixed` is the cost that nothing changes.

    It is 0 where the layers, timed one by one, take longer than the network.
    """
    layers = _Layers(scope, kind)
    of_parts = scope.layers_of_parts()
    items = {block.name: layers.block(block) for block in scope.body.blocks}
    items |= {part: layers.part(part, names) for part, names in of_parts.items()}
    inside = [f"{scope.body.prefix}{block.name}." for block in scope.body.blocks]
    inside += [name for names in of_parts.values() for name in names]
    groups = {stage: layers.beside(stage, tuple(inside)) for stage in layers.pruned}
    changeable = sum(choices[0].cost for choices in groups.values())
    changeable += sum(item.costs[(0,) * len(item.groups)][0] for item in items.values())
    return CostTable(max(0.0, dense_cost - changeable), groups, items)


class _Layers:
    """Puts the costs of a scope's layers together as the plan's choices tie them."""

    def __init__(self, scope: Scope, kind: BudgetKind) -> None:
        self.kind = kind
        self.body = scope.body
        self.pruned = pruned_stages(scope.body)
        self.price: Price = scope.price(kind)
        self.sites: dict[str, Site] = scope.sites()
        groups = scope.body.groups.values()
        self.read = {layer: group.name for group in groups for layer in group.readers}
        self.given = {conv: group.name for group in groups for conv, _ in group.producers}

    def block(self, block: Block) -> Item:
        """Return a block's costs under each of its options."""
        names = [name for name in self.sites if name.startswith(f"{self.body.prefix}{block.name}.")]
        spatial = {self.body.prefix + conv for conv in block.spatial}
        options = block_options(self.body, block)

        def costs(rates: Rates) -> list[float]:
            found = []
            for rank, rate in options:
                if (rank, rate) == DROPPED:
                    found.append(0.0)
                    continue
                all_rates = {**rates, **dict.fromkeys(block.inner, rate)}
                found.append(sum(self._layer(n, all_rates, rank if n in spatial else None) for n in names))
            return found

        return self._item(names, len(options), costs)

    def part(self, part: str, names: Sequence[str]) -> Item:
        """Return the costs of a detector's part at each of its ranks; a part that MACs leave out costs nothing."""
        if self.kind == "macs" and part == OUTSIDE_TOTAL:
            names = []
        cost = self._low_rank if part == LINEAR_PART else self._layer
        ranks = PART_RANKS[part]
        return self._item(names, len(ranks), lambda rates: [sum(cost(n, rates, r) for n in names) for r in ranks])

    def beside(self, stage: str, inside: tuple[str, ...]) -> list[Choice]:
        """Return a stage output's costs at each of RATES: those of its layers that are not inside any of `inside`."""
        group = self.body.groups[stage]
        tied = [*(conv for conv, _ in group.producers), *group.readers]
        names = [name for name in tied if name in self.sites and not name.startswith(inside)]
        return [Choice(0.0, sum(self._layer(name, {stage: rate}, None) for name in names)) for rate in RATES]

    def _item(self, names: Iterable[str], options: int, costs: Callable[[Rates], list[float]]) -> Item:
        """Make an item of layers whose costs under its options depend on the stages that they read and give."""
        touched = {tied.get(name) for name in names for tied in (self.read, self.given)}
        groups = tuple(stage for stage in self.pruned if stage in touched)
        by_levels: dict[Levels, list[float]] = {}
        for levels in product(range(len(RATES)), repeat=len(groups)):
            by_levels[levels] = costs(dict(zip(groups, (RATES[level] for level in levels), strict=True)))
        return Item([0.0] * options, by_levels, groups)

    def _layer(self, name: str, rates: Rates, rank: int | None) -> float:
        site = self.sites[name]
        read, given = rates.get(self.read.get(name, ""), 0.0), rates.get(self.given.get(name, ""), 0.0)
        return self.price(site, kept_channels(site.inputs, read), kept_channels(site.outputs, given), rank)

    def _low_rank(self, name: str, rates: Rates, rank: int | None) -> float:
        """Return the cost of a linear layer at rank r: it becomes two layers with r channels between."""
        if rank is None:
            return self._layer(name, rates, None)
        site = self.sites[name]
        inner = min(rank, site.inputs, site.outputs)
        down, up = replace(site, outputs=inner, bias=False), replace(site, inputs=inner)
        return sum(self.price(half, half.inputs, half.outputs, None) for half in (down, up))
