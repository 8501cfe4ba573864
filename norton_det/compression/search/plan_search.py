"""Finds a compression plan for a budget: the options that leave the least error on images at what may be spent."""

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from norton_det.compression.compress import check_dense
from norton_det.compression.plan import CompressionPlan
from norton_det.compression.saliency import Criterion
from norton_det.compression.search.body_sensitivities import Sensitivities, centre_crops, measure_body
from norton_det.compression.search.budget import Budget, Scope
from norton_det.compression.search.choice import Choice, Item, Solution, solve
from norton_det.compression.search.cost_table import CostTable, cost_table
from norton_det.compression.search.options import DROPPED, PART_RANKS, RATES, block_options, pruned_stages
from norton_det.compression.search.part_sensitivities import measure_parts
from norton_det.models.channels import Body
from norton_det.models.norms import unfreeze_batch_norms
from norton_det.models.parts import PARTS, part_layers

log = logging.getLogger(__name__)
IMAGE_SIZE = 224
"""Pixels a side of the crops that sensitivities are measured on."""
MOST_IMAGES = 48
"""How many images are used at most; more would cost time and memory and change little."""
TIMED_ROUNDS = 3
"""How many plans are timed for a budget in milliseconds: a network's time is not the sum of its layers' times."""


@dataclass(frozen=True)
class SearchReport:
    """Tells what a plan is expected to do.

    `predicted_error`: the share of energy by which the features differ after recovery, averaged over the stages'
    outputs; for a whole detector the neck's error and the heads' mean are added. `cost`, `dense_cost`: MACs,
    parameters or milliseconds, as counted or measured on the planned and the dense network.
    """

    predicted_error: float
    cost: float
    dense_cost: float


def search_plan(
    model: nn.Module,
    images: Sequence[Tensor],
    budget: Budget | str,
    *,
    whole_detector: bool = False,
    criterion: Criterion = "pabs",
    seed: int = 0,
) -> tuple[CompressionPlan, SearchReport]:
    """Find the plan of least predicted error for a trained, dense ResNet or detector, and what it is expected to do.

    `images` are float RGB (3, H, W) in 0 to 1, at least two; the first MOST_IMAGES are used. The budget, such as
    `macs=0.5`, covers the body (all of a classifier), or with `whole_detector` all parts. `criterion` is what
    `compress` will prune by. The same seed gives the same plan, except for milliseconds, which are measured. Raises
    ValueError for fewer than two images, a model that does not fit, and a budget below the smallest possible, which
    is named.

    To try several budgets, call `measure_sensitivities` once and `best_plan` for each.
    """
    budget = Budget.parse(budget) if isinstance(budget, str) else budget
    scope = Scope(model, whole_detector, budget.size)
    affordable = _affordable(scope, budget)  # first: a budget that is too small is refused before minutes of work
    sensitivities = measure_sensitivities(
        model, images, whole_detector=whole_detector, criterion=criterion, seed=seed
    )
    return _best_plan(scope, sensitivities, budget, *affordable)


def measure_sensitivities(
    model: nn.Module,
    images: Sequence[Tensor],
    *,
    whole_detector: bool = False,
    criterion: Criterion = "pabs",
    seed: int = 0,
) -> Sensitivities:
    """Measure the errors of all options on the images; arguments and errors as in `search_plan`."""
    if len(images) < 2:
        raise ValueError(f"sensitivities are measured on at least 2 images, got {len(images)}")
    body = check_dense(model)
    dense = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
    unfreeze_batch_norms(dense)
    batch = centre_crops(model, images[:MOST_IMAGES], IMAGE_SIZE)
    parts = [part for part in PARTS if part_layers(model, part)] if whole_detector else []
    with tqdm(total=len(body.blocks) + len(pruned_stages(body)) + len(parts), desc="sensitivities") as bar:
        generator = torch.Generator().manual_seed(seed)
        measured = measure_body(dense, body, batch, criterion, generator, lambda name: bar.update())
        if whole_detector:
            measured = replace(measured, parts=measure_parts(dense, batch, lambda name: bar.update()))
    return measured


def best_plan(model: nn.Module, sensitivities: Sensitivities, budget: Budget) -> tuple[CompressionPlan, SearchReport]:
    """Find the plan for a budget from measured sensitivities, for the whole detector if its parts were measured.

    Raises ValueError for a budget below the smallest possible, which is named.
    """
    scope = Scope(model, bool(sensitivities.parts), budget.size)
    return _best_plan(scope, sensitivities, budget, *_affordable(scope, budget))


def smallest_plan(model: nn.Module, size: tuple[int, int]) -> tuple[CompressionPlan, float]:
    """Find the plan of a whole detector with the fewest MACs on an image (H, W), and the smallest possible budget, as
    a share of the dense detector's MACs.

    Raises ValueError for what is no detector or is compressed already.
    """
    scope = Scope(model, True, size)
    dense_cost = scope.cost(CompressionPlan(), "macs")
    table = cost_table(scope, "macs", dense_cost)
    plan = _as_plan(scope.body, solve(table.groups, table.items, table.least - table.fixed))
    return plan, _rounded_up(table.least / dense_cost)


def _rounded_up(amount: float) -> float:
    return math.ceil(1000 * amount) / 1000


def _best_plan(
    scope: Scope, sensitivities: Sensitivities, budget: Budget, dense_cost: float, limit: float, table: CostTable
) -> tuple[CompressionPlan, SearchReport]:
    groups, items = _with_errors(table, sensitivities)
    target = limit
    found: list[tuple[CompressionPlan, SearchReport]] = []
    for _ in range(1 if budget.is_share else TIMED_ROUNDS):
        solution = solve(groups, items, target - table.fixed)
        plan = _as_plan(scope.body, solution)
        cost = scope.cost(plan, budget.kind)
        found.append((plan, SearchReport(solution.error, cost, dense_cost)))
        target = max(table.least, target * limit / cost)
    within = [pair for pair in found if pair[1].cost <= limit]
    if not within:
        log.warning("no plan was measured within budget %s: this is the fastest one found", budget)
        return min(found, key=lambda pair: pair[1].cost)
    return min(within, key=lambda pair: pair[1].predicted_error)


def _affordable(scope: Scope, budget: Budget) -> tuple[float, float, CostTable]:
    """Return the dense network's cost, the most that a plan may cost, and the table; refuse too small a budget."""
    dense_cost = scope.cost(CompressionPlan(), budget.kind)
    unit = dense_cost if budget.is_share else 1.0
    table = cost_table(scope, budget.kind, dense_cost)
    if table.least > budget.amount * unit:
        least = _rounded_up(table.least / unit)
        raise ValueError(f"budget {budget} is impossible: the smallest is {budget.kind}={least:g}")
    return dense_cost, budget.amount * unit, table


def _with_errors(table: CostTable, sensitivities: Sensitivities) -> tuple[dict[str, list[Choice]], dict[str, Item]]:
    """Fill in the knapsack's errors: the neck's counts as the features' does, a head's as its share in the mean."""
    errors = {**sensitivities.blocks}
    for part, values in sensitivities.parts.items():
        heads = 1 if part == "neck" else len(sensitivities.parts) - 1
        errors[part] = [error / heads for error in values]
    groups = {
        stage: [
            Choice(error, choice.cost) for error, choice in zip(sensitivities.stages[stage], choices, strict=True)
        ]
        for stage, choices in table.groups.items()
    }
    return groups, {name: replace(item, errors=errors[name]) for name, item in table.items.items()}


def _as_plan(body: Body, solution: Solution) -> CompressionPlan:
    """Turn a solution into a plan, which does not name what stays as it is."""
    ranks: dict[str, int | None] = {}
    dropped: list[str] = []
    rates = {stage: RATES[level] for stage, level in solution.levels.items()}
    for block in body.blocks:
        rank, rate = block_options(body, block)[solution.options[block.name]]
        if (rank, rate) == DROPPED:
            dropped.append(block.name)
            continue
        ranks |= dict.fromkeys(block.spatial, rank)
        rates |= dict.fromkeys(block.inner, rate)
    parts = {part: PART_RANKS[part][chosen] for part, chosen in solution.options.items() if part in PARTS}
    return CompressionPlan(
        {layer: rank for layer, rank in ranks.items() if rank},
        {group: rate for group, rate in rates.items() if rate},
        {part: rank for part, rank in parts.items() if rank},
        tuple(dropped),
    )
