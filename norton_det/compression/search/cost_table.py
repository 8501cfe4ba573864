"""What every choice that a plan makes would cost, as a knapsack whose errors are still open."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from norton_det.analysis.complexity import OUTSIDE_TOTAL
from norton_det.compression.plan import kept_channels
from norton_det.compression.search.body_sensitivities import OPTIONS, PRUNED_STAGES, RATES
from norton_det.compression.search.budget import BudgetKind, Scope
from norton_det.compression.search.choice import Choice, Item, Levels, cheapest
from norton_det.compression.search.part_sensitivities import PART_RANKS
from norton_det.compression.search.prices import Price, Site
from norton_det.models.detectors import LATERALS, PARTS
from norton_det.models.resnet import BLOCK_NAMES, STAGES


@dataclass(frozen=True)
class CostTable:
    """Costs of all choices, errors 0; a network costs `fixed` and the costs of what is chosen.

    `groups`: the stage outputs, a level a rate; `items`: the bottlenecks and a detector's parts.
    """

    fixed: float
    groups: Mapping[str, Sequence[Choice]]
    items: Mapping[str, Item]

    @property
    def least(self) -> float:
        """The cost of the cheapest network."""
        return self.fixed + cheapest(self.groups, self.items)


def cost_table(scope: Scope, kind: BudgetKind, dense_cost: float) -> CostTable:
    """The table of a scope whose dense network costs `dense_cost`: the parts that never change are what is left.

    That is nothing where the layers, timed one by one, take longer than the network.
    """
    layers = _Layers(scope, kind)
    groups = {stage: [Choice(0.0, layers.lateral(stage, rate)) for rate in RATES] for stage in PRUNED_STAGES}
    items = {name: layers.bottlenecks(name) for name in BLOCK_NAMES}
    items |= {part: layers.part(part) for part in PARTS if any(name in layers.sites for name in PARTS[part])}
    changeable = sum(choices[0].cost for choices in groups.values())
    changeable += sum(item.costs[(0,) * len(item.groups)][0] for item in items.values())
    return CostTable(max(0.0, dense_cost - changeable), groups, items)


class _Layers:
    """The costs of a scope's layers, put together as the plan's choices tie them."""

    def __init__(self, scope: Scope, kind: BudgetKind) -> None:
        self.kind = kind
        self.price: Price = scope.price(kind)
        self.sites: dict[str, Site] = scope.sites()
        self.widths = scope.body.widths

    def lateral(self, stage: str, rate: float) -> float:
        """The pyramid's lateral convolution behind a stage, where it is in scope."""
        name = LATERALS[STAGES.index(stage)]
        if name not in self.sites:
            return 0.0
        return self._layer(name, kept_channels(self.widths[stage], rate), self.sites[name].outputs)

    def bottlenecks(self, name: str) -> Item:
        """A bottleneck under each of OPTIONS; the first of a stage reads the stage before."""
        stage, number = name.split(".")
        before = ("stem", *STAGES)[STAGES.index(stage)] if number == "0" else stage
        groups = tuple(group for group in dict.fromkeys((before, stage)) if group in PRUNED_STAGES)
        costs: dict[Levels, list[float]] = {}
        for levels in product(range(len(RATES)), repeat=len(groups)):
            rates = {group: RATES[level] for group, level in zip(groups, levels, strict=True)}
            inputs, outputs = (kept_channels(self.widths[group], rates.get(group, 0.0)) for group in (before, stage))
            costs[levels] = [self._bottleneck(name, inputs, outputs, rank, rate) for rank, rate in OPTIONS]
        return Item([0.0] * len(OPTIONS), costs, groups)

    def part(self, part: str) -> Item:
        """A detector's part at each of its ranks; what stands beside the counted total costs nothing."""
        if self.kind == "macs" and part == OUTSIDE_TOTAL:
            costs = [0.0] * len(PART_RANKS[part])
        else:
            sites = [site for name, site in self.sites.items() if name in PARTS[part]]
            cost = self._low_rank if part == "box_head" else self._of_rank
            costs = [sum(cost(site, rank) for site in sites) for rank in PART_RANKS[part]]
        return Item([0.0] * len(costs), {(): costs})

    def _bottleneck(self, name: str, inputs: int, outputs: int, rank: int | None, rate: float) -> float:
        first, second = (kept_channels(self.widths[f"{name}.{conv}"], rate) for conv in ("conv1", "conv2"))
        cost = self._layer(f"{name}.conv1", inputs, first)
        cost += self._layer(f"{name}.conv2", first, second, rank)
        cost += self._layer(f"{name}.conv3", second, outputs)
        shortcut = f"{name}.downsample.0"
        return cost + (self._layer(shortcut, inputs, outputs) if shortcut in self.sites else 0.0)

    def _low_rank(self, site: Site, rank: int | None) -> float:
        """A linear layer of rank r is two of them, with r channels between."""
        if rank is None:
            return self._of_rank(site, None)
        inner = min(rank, site.inputs, site.outputs)
        down, up = replace(site, outputs=inner, bias=False), replace(site, inputs=inner)
        return self._of_rank(down, None) + self._of_rank(up, None)

    def _of_rank(self, site: Site, rank: int | None) -> float:
        return self.price(site, site.inputs, site.outputs, rank)

    def _layer(self, name: str, inputs: int, outputs: int, rank: int | None = None) -> float:
        return self.price(self.sites[name], inputs, outputs, rank)
