"""What choices cost, the budgets that they are held against, and the solver that chooses among them."""

import itertools

import numpy as np
import pytest
import torch
from detectors import tiny_detector
from searched_models import (
    DETECTORS,
    MODELS,
    counted,
    measured,
    model_of,
    random_solution,
)
from torch import nn

from norton_det.compression.compress import compress
from norton_det.compression.plan import CompressionPlan
from norton_det.compression.search import plan_search as search
from norton_det.compression.search import prices
from norton_det.compression.search.budget import Budget, Scope
from norton_det.compression.search.choice import Choice, Item, cheapest, solve
from norton_det.compression.search.cost_table import cost_table
from norton_det.compression.search.plan_search import best_plan
from norton_det.layers.cp_conv import CPConv2d, DepthwiseCPConv2d


def random_problem(seed):
    rng = np.random.default_rng(seed)
    groups = {name: [Choice(*rng.uniform(0, 1, 2)) for _ in range(3)] for name in "ab"}
    items = {}
    for number, names in enumerate([(), ("a",), ("b",), ("a", "b"), ("b",)]):
        levels = itertools.product(range(3), repeat=len(names))
        items[str(number)] = Item(
            list(rng.uniform(0, 1, 4)), {at: list(rng.uniform(0, 2, 4)) for at in levels}, names
        )
    return groups, items


def every_combination(groups, items):
    """(error, cost) of each, the oracle."""
    for levels in itertools.product(*(range(len(choices)) for choices in groups.values())):
        at = dict(zip(groups, levels, strict=True))
        chosen = [groups[name][level] for name, level in at.items()]
        for options in itertools.product(*(range(len(item.errors)) for item in items.values())):
            error, cost = sum(c.error for c in chosen), sum(c.cost for c in chosen)
            for item, option in zip(items.values(), options, strict=True):
                error += item.errors[option]
                cost += item.costs[tuple(at[name] for name in item.groups)][option]
            yield error, cost


@pytest.mark.parametrize("seed", range(4))
def test_the_solver_finds_what_brute_force_finds(seed):
    groups, items = random_problem(seed)
    combinations = np.array(list(every_combination(groups, items)))
    least, most = combinations[:, 1].min(), combinations[:, 1].max()
    assert least <= cheapest(groups, items) <= least * (1 + 1e-4)
    for share in (0.05, 0.2, 0.5, 1):
        budget = least + share * (most - least)
        solution = solve(groups, items, budget)
        assert solution.cost <= budget
        assert solution.error == pytest.approx(combinations[combinations[:, 1] <= budget, 0].min(), rel=2e-4)
    with pytest.raises(ValueError, match="no combination"):
        solve(groups, items, least * 0.99)


@pytest.mark.parametrize("name", [*MODELS, "faster_rcnn_v2", "mask_rcnn's body"])
def test_the_table_costs_what_the_project_counts(name):
    """Also on maps of odd sizes, where a stride's rounding shows."""
    model, size = model_of(name.removesuffix("'s body")), (75, 107)
    whole = name in (*DETECTORS, "faster_rcnn_v2")
    scope = Scope(model, whole, size)
    tables = {kind: cost_table(scope, kind, scope.cost(CompressionPlan(), kind)) for kind in ("macs", "parameters")}
    solutions = {kind: random_solution(table, 0) for kind, table in tables.items()}
    compressed, _ = compress(model, search._as_plan(scope.body, solutions["macs"]))
    for kind, table in tables.items():
        assert table.fixed + solutions[kind].cost == getattr(counted(compressed, size, whole), kind)


@pytest.mark.parametrize("kind", DETECTORS)
def test_no_plan_has_fewer_macs_than_the_smallest(kind):
    plan, share = search.smallest_plan(model_of(kind), (64, 96))
    scope = Scope(model_of(kind), True, (64, 96))
    found, dense = (scope.cost(each, "macs") for each in (plan, CompressionPlan()))
    assert found <= share * dense <= found + 0.002 * dense
    with pytest.raises(ValueError, match="the smallest is"):
        best_plan(model_of(kind), measured(kind), Budget("macs", share - 0.002, (64, 96)))


def test_what_never_changes_costs_at_least_nothing(network):
    scope = Scope(network, False, (32, 32))
    table = cost_table(scope, "macs", dense_cost=1.0)  # less than its layers, as it may be where time is measured
    assert table.fixed == 0
    assert table.least > 0


def test_of_a_body_that_ends_early_the_last_stage_stays_whole():
    """P6 reads it."""
    detector = tiny_detector("retinanet_v2", "resnet18", returned=(1, 2, 3))
    scope = Scope(detector, True, (64, 64))
    table = cost_table(scope, "parameters", scope.cost(CompressionPlan(), "parameters"))
    assert set(table.groups) == {"layer1", "layer2"}
    solution = random_solution(table, 1)
    compressed, _ = compress(detector, search._as_plan(scope.body, solution))
    assert table.fixed + solution.cost == sum(p.numel() for p in compressed.parameters())


def test_times_between_the_measured_widths_are_interpolated(monkeypatch):
    site = prices.Site(64, 128, (3, 3), (1, 1), (1, 1), (1, 1), False, True, ((1, 8, 8),))
    quarters = {(low, high): 3.0 + low * 2 + high * 5 + low * high for low in range(1, 5) for high in range(1, 5)}
    monkeypatch.setattr(prices, "_grid_milliseconds", lambda site, low, high, **_: quarters[low, high])
    price = prices.timed(torch.device("cpu"))
    for inputs, outputs in ((64, 128), (16, 32), (40, 100), (8, 128)):
        low, high = inputs / 16, outputs / 32
        assert price(site, inputs, outputs, 2) == pytest.approx(3 + low * 2 + high * 5 + low * high)


@pytest.mark.parametrize(("seconds", "kind"), [((2.0, 3.0), DepthwiseCPConv2d), ((3.0, 2.0), nn.Conv2d)])
def test_a_cp_layer_costs_what_its_faster_form_takes(seconds, kind, monkeypatch):
    clock = iter(seconds)
    monkeypatch.setattr(prices, "median_seconds", lambda call: next(clock))
    layer, milliseconds = prices.fastest(CPConv2d(2, 3, 3, rank=1), [torch.zeros(1, 2, 4, 4)])
    assert (type(layer), milliseconds) == (kind, 2000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("watts=3", "expected macs=NUMBER or parameters=NUMBER or milliseconds=NUMBER"),
        ("macs", "expected macs"),
        ("macs=many", "expected macs"),
        ("macs=budget", "expected macs"),
        ("macs=1.5", "a share above 0 and up to 1"),
        ("macs=nan", "a share above 0"),
        ("milliseconds=-1", "a number above 0"),
    ],
)
def test_a_budget_that_is_none_says_so(text, message):
    with pytest.raises(ValueError, match=message):
        Budget.parse(text)


def test_a_size_that_is_not_given_is_torchvisions(network):
    assert Scope(network, False, None).size == (224, 224)
    assert Scope(model_of("retinanet"), False, None).size == (800, 800)


def test_factorised_parts_are_not_planned_again():
    neck, _ = compress(model_of("mask_rcnn"), CompressionPlan(parts={"neck": 1}))
    with pytest.raises(ValueError, match="compressed already"):
        Scope(neck, True, None)
