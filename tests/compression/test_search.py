import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from norton_det.models.detectors import DetectorSettings, DetectorSpec, build_from_spec
from norton_det.models.resnet import BLOCK_NAMES, SPATIAL_LAYERS, ResNetSpec, build_resnet50
from torch import nn
from torchvision.transforms.v2 import CenterCrop, Compose, Resize

from norton_det.analysis.complexity import count, count_detector, total
from norton_det.compression import recover as recovery
from norton_det.compression.compress import compress
from norton_det.compression.plan import CompressionPlan, load_plan
from norton_det.compression.recover import recover
from norton_det.compression.search import body_sensitivities as sensitivity
from norton_det.compression.search import cost_table as cost_table_module
from norton_det.compression.search import plan_search as search
from norton_det.compression.search import prices
from norton_det.compression.search.budget import Budget, Scope
from norton_det.compression.search.choice import Choice, Item, cheapest, solve
from norton_det.compression.search.cost_table import cost_table
from norton_det.compression.search.least_squares import least_squares
from norton_det.compression.search.plan_search import best_plan, measure_sensitivities, search_plan
from norton_det.data.images import find_images, read_image
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.weights import read_weights, resnet50_from_weights

RANK_ONE = "layer3.2.conv2"


def trained_looking(model):
    """Statistics as if trained on noise, and one layer that CP of rank 1 loses nothing of."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.3, 1, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
    body = getattr(model, "backbone", model)
    layer = getattr(body, "body", body).get_submodule(RANK_ONE)
    layer.weight.data = CPConv2d.from_conv(layer, 1).weight.data
    return model.eval()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return trained_looking(build_resnet50(ResNetSpec.dense(0.125), num_classes=10))


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    spec = DetectorSpec(
        "mask_rcnn",
        5,
        ResNetSpec.dense(0.125),
        fpn_channels=16,
        box_channels=256,
        mask_channels=8,
        settings=DetectorSettings(min_size=(64,), max_size=64),
    )
    return trained_looking(build_from_spec(spec))


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 64, 80, generator=generator) for _ in range(6)]


@pytest.fixture(scope="module", autouse=True)
def small_crops():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "IMAGE_SIZE", 64)
        yield


@pytest.fixture(scope="module")
def sensitivities(network, images):
    return measure_sensitivities(network, images)


@pytest.fixture(scope="module")
def detector_sensitivities(detector, images):
    return measure_sensitivities(detector, images, whole_detector=True)


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


def random_solution(table, seed):
    rng = np.random.default_rng(seed)
    levels = {name: int(rng.integers(len(choices))) for name, choices in table.groups.items()}
    options = {name: int(rng.integers(len(item.errors))) for name, item in table.items.items()}
    cost = sum(table.groups[name][level].cost for name, level in levels.items())
    for name, option in options.items():
        item = table.items[name]
        cost += item.costs[tuple(levels[group] for group in item.groups)][option]
    return search.Solution(levels, options, 0.0, cost)


@pytest.mark.parametrize("kind", ["macs", "parameters"])
@pytest.mark.parametrize("whole", ["classifier", "body", "detector"])
def test_the_table_costs_what_the_project_counts(network, detector, kind, whole):
    """Also on maps of odd sizes, where a stride's rounding shows."""
    model = network if whole == "classifier" else detector
    scope = Scope(model, whole == "detector", (75, 107))
    table = cost_table(scope, kind, scope.cost(CompressionPlan(), kind))
    for seed in range(2):
        solution = random_solution(table, seed)
        compressed, _ = compress(model, search._as_plan(solution))
        if whole == "detector":
            counted = total(count_detector(compressed, 75, 107))
        else:
            body = compressed if whole == "classifier" else compressed.backbone.body
            counted = count(body, torch.zeros(1, 3, 75, 107))[""]
        assert table.fixed + solution.cost == getattr(counted, kind)


def test_what_never_changes_costs_at_least_nothing(network):
    scope = Scope(network, False, (32, 32))
    table = cost_table(scope, "macs", dense_cost=1.0)  # less than its layers, as it may be where time is measured
    assert table.fixed == 0
    assert table.least > 0


def test_more_budget_never_foretells_more_error(network, sensitivities):
    budgets = [0.3, 0.45, 0.6, 0.8, 1.0]
    reports = [best_plan(network, sensitivities, Budget("macs", share))[1] for share in budgets]
    for share, report in zip(budgets, reports, strict=True):
        assert report.cost <= share * report.dense_cost
    errors = [report.predicted_error for report in reports]
    assert all(more <= less * 1.001 for less, more in itertools.pairwise(errors))
    assert errors[-1] < 1e-9 * errors[0]


def test_a_whole_budget_leaves_the_network_alone(network, sensitivities):
    plan, _ = best_plan(network, sensitivities, Budget("parameters", 1.0))
    assert set(plan.ranks) <= {RANK_ONE}  # which costs it nothing
    assert not plan.rates


def test_the_same_seed_gives_the_same_plan(network, images, sensitivities):
    budget = Budget("macs", 0.5)
    assert search_plan(network, images, budget) == best_plan(network, sensitivities, budget)


def test_a_layer_that_rank_one_loses_nothing_of_gets_rank_one(network, sensitivities):
    errors = sensitivities.blocks[RANK_ONE.removesuffix(".conv2")]
    options = dict(zip(search.OPTIONS, errors, strict=True))
    others = [dict(zip(search.OPTIONS, e, strict=True))[1, 0.0] for e in sensitivities.blocks.values()]
    assert options[1, 0.0] < 0.1 * float(np.median(others))
    for share in (0.6, 0.8):
        assert best_plan(network, sensitivities, Budget("macs", share))[0].ranks[RANK_ONE] == 1


def test_channels_that_are_silent_cost_nothing_to_drop(network, images):
    """Every other inner channel of one block gives zeros: a rate of a half loses nothing, one of 0.6 does."""
    silenced = build_resnet50(ResNetSpec.dense(0.125), num_classes=10)
    silenced.load_state_dict(network.state_dict())
    for norm in ("bn1", "bn2"):
        for name in ("weight", "bias"):
            silenced.get_parameter(f"layer2.1.{norm}.{name}").data[::2] = 0
    options = dict(zip(search.OPTIONS, measure_sensitivities(silenced, images).blocks["layer2.1"], strict=True))
    assert options[None, 0.5] < 1e-3 * options[None, 0.75]
    assert options[None, 0.6] > 10 * options[None, 0.5]


def test_the_plan_file_is_a_plan(network, sensitivities, tmp_path):
    plan, report = best_plan(network, sensitivities, Budget("macs", 0.4))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_dict()))
    assert load_plan(path) == plan
    compressed, _ = compress(network, load_plan(path))
    counted = count(compressed, torch.zeros(1, 3, 224, 224))[""].macs
    assert counted == report.cost
    assert counted <= 0.4 * count(network, torch.zeros(1, 3, 224, 224))[""].macs
    assert set(plan.ranks) <= set(SPATIAL_LAYERS)


def smallest(model, sensitivities, kind, size=None):
    with pytest.raises(ValueError, match="impossible") as caught:
        best_plan(model, sensitivities, Budget(kind, 1e-3, size))
    return float(str(caught.value).rsplit("=", 1)[1])


def test_a_whole_detector_is_planned_part_by_part(detector, detector_sensitivities):
    assert set(detector_sensitivities.parts) == {"neck", "rpn", "box_head", "mask_head"}
    share = smallest(detector, detector_sensitivities, "macs", (128, 128))
    plan, report = best_plan(detector, detector_sensitivities, Budget("macs", share, (128, 128)))
    compressed, _ = compress(detector, plan)
    assert total(count_detector(compressed, 128, 128)).macs == report.cost <= share * report.dense_cost
    assert set(plan.parts) == {"neck", "rpn", "box_head"}  # the mask head's MACs stand beside the total
    share = smallest(detector, detector_sensitivities, "parameters")
    assert set(best_plan(detector, detector_sensitivities, Budget("parameters", share))[0].parts) == {
        *plan.parts,
        "mask_head",
    }


def test_errors_of_parts_fall_with_rank(detector_sensitivities):
    for errors in detector_sensitivities.parts.values():
        unchanged, *by_rank = errors
        assert unchanged == 0
        assert by_rank == sorted(by_rank, reverse=True)


def test_a_detectors_body_alone_leaves_its_parts(detector, detector_sensitivities):
    plan, _ = best_plan(detector, replace(detector_sensitivities, parts={}), Budget("macs", 0.4, (64, 64)))
    assert not plan.parts
    assert plan.ranks


def test_times_between_the_measured_widths_are_interpolated(monkeypatch):
    site = prices.Site(64, 128, (3, 3), (1, 1), (1, 1), False, True, ((8, 8),))
    quarters = {(low, high): 3.0 + low * 2 + high * 5 + low * high for low in range(1, 5) for high in range(1, 5)}
    monkeypatch.setattr(prices, "_grid_milliseconds", lambda site, low, high, **_: quarters[low, high])
    price = prices.timed(torch.device("cpu"))
    for inputs, outputs in ((64, 128), (16, 32), (40, 100), (8, 128)):
        low, high = inputs / 16, outputs / 32
        assert price(site, inputs, outputs, 2) == pytest.approx(3 + low * 2 + high * 5 + low * high)


def test_a_budget_in_milliseconds_is_measured(network, sensitivities):
    generous, report = best_plan(network, sensitivities, Budget("milliseconds", 1e5, (32, 32)))
    assert not generous.rates
    assert 0 < report.cost < 1e4
    with pytest.raises(ValueError, match=r"impossible: the smallest is milliseconds="):
        best_plan(network, sensitivities, Budget("milliseconds", 1e-4, (32, 32)))


@pytest.mark.parametrize(
    ("measured", "taken", "warned"),
    [((1.3, 0.7, 0.95), 0.95, False), ((0.8, 1.05, 0.9), 0.9, False), ((1.3, 1.1, 1.2), 1.1, True)],
)
def test_of_the_timed_plans_the_best_within_the_budget_is_taken(
    network, sensitivities, monkeypatch, caplog, measured, taken, warned
):
    """The clock says other than the table, which counts MACs here; what was planned for more MACs errs less."""
    scope = Scope(network, False, (64, 64))
    dense = scope.cost(CompressionPlan(), "macs")
    table, limit = cost_table(scope, "macs", dense), 0.5 * dense
    clock, budgets = iter([share * limit for share in measured]), []
    monkeypatch.setattr(search, "solve", lambda *problem: budgets.append(problem[2]) or solve(*problem))
    monkeypatch.setattr(scope, "cost", lambda plan, kind: next(clock))
    _, report = search._best_plan(scope, sensitivities, Budget("milliseconds", limit), dense, limit, table)
    assert report.cost == taken * limit
    targets = [limit, limit / measured[0], limit / measured[0] / measured[1]]  # less where it took longer
    assert budgets == pytest.approx([max(table.least, target) - table.fixed for target in targets])
    assert ("no plan was measured within budget" in caplog.text) == warned


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("watts=3", "expected macs=NUMBER or parameters=NUMBER or milliseconds=NUMBER"),
        ("macs", "expected macs"),
        ("macs=many", "expected macs"),
        ("macs=1.5", "a share above 0 and up to 1"),
        ("macs=nan", "a share above 0"),
        ("milliseconds=-1", "a number above 0"),
    ],
)
def test_a_budget_that_is_none_says_so(text, message):
    with pytest.raises(ValueError, match=message):
        Budget.parse(text)


def test_what_cannot_be_is_refused_before_anything_is_measured(network, images, monkeypatch):
    monkeypatch.setattr(search, "measure_sensitivities", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"macs=0.01 is impossible: the smallest is macs=0\.\d+$"):
        search_plan(network, images, Budget("macs", 0.01))
    with pytest.raises(ValueError, match="a classifier's"):
        search_plan(network, images, Budget("macs", 0.5), whole_detector=True)
    compressed, _ = compress(network, load_plan("norton-59"))
    with pytest.raises(ValueError, match="not a dense Conv2d"):
        search_plan(compressed, images, Budget("macs", 0.5))


def test_the_smallest_budget_that_is_named_is_possible(network, sensitivities):
    share = smallest(network, sensitivities, "macs")
    _, report = best_plan(network, sensitivities, Budget("macs", share))
    assert (share - 1e-3) * report.dense_cost <= report.cost <= share * report.dense_cost


def test_a_size_that_is_not_given_is_torchvisions(network, detector):
    assert Scope(network, False, None).size == (224, 224)
    assert Scope(detector, False, None).size == (800, 800)


def test_factorised_parts_are_not_planned_again(detector):
    neck, _ = compress(detector, CompressionPlan(parts={"neck": 1}))
    assert Scope(neck, False, None).whole_detector is False
    with pytest.raises(ValueError, match="already factorised: neck"):
        Scope(neck, True, None)


def test_more_images_than_help_are_left_aside(network, images, monkeypatch):
    asked = []
    monkeypatch.setattr(search, "MOST_IMAGES", 4)
    monkeypatch.setattr(search, "measure_body", lambda body, batch, *_: asked.append(len(batch)))
    measure_sensitivities(network, images)
    assert asked == [4]


def test_the_heads_errors_weigh_as_their_mean(detector, detector_sensitivities):
    table = cost_table(Scope(detector, True, (64, 64)), "parameters", 1e9)
    _, items = search._with_errors(table, detector_sensitivities)
    assert items["neck"].errors == pytest.approx(detector_sensitivities.parts["neck"])
    for head in ("rpn", "box_head", "mask_head"):
        assert items[head].errors == pytest.approx([error / 3 for error in detector_sensitivities.parts[head]])


@pytest.mark.parametrize(("seconds", "kind"), [((2.0, 3.0), CPConv2d), ((3.0, 2.0), nn.Conv2d)])
def test_a_cp_layer_costs_what_its_faster_form_takes(seconds, kind, monkeypatch):
    clock = iter(seconds)
    monkeypatch.setattr(prices, "median_seconds", lambda call: next(clock))
    layer, milliseconds = prices.fastest(CPConv2d(2, 3, 3, rank=1), [torch.zeros(1, 2, 4, 4)])
    assert (type(layer), milliseconds) == (kind, 2000)


def test_without_images_nothing_is_measured(network):
    with pytest.raises(ValueError, match="at least 2 images, got 0"):
        measure_sensitivities(network, [])


REAL_BLOCKS = tuple(block for block in BLOCK_NAMES if not block.startswith("layer4"))


def first_stages(network, images):
    """The outputs of the stages but the last."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    outputs = {}
    for name in REAL_BLOCKS:
        x = outputs[name.split(".")[0]] = network.get_submodule(name)(x)
    return outputs


def left_after_recovery(dense, plan, fit, images):
    """The share of energy that the stages' outputs have lost, added up, on images that nothing was fitted on.

    Recovery is short. The channels that are gone are guessed from those that are left.
    """
    compressed, report = compress(dense, plan)
    recovered, _ = recover(compressed, dense, fit, report.kept, steps=30)
    with torch.no_grad():
        half, both = len(fit), sensitivity.prepare([*fit, *images], 128, torch.device("cpu"))
        wanted, found = (first_stages(network, both) for network in (dense, recovered))
        error = 0.0
        for stage, x in wanted.items():
            gone = sorted(set(range(x.shape[1])) - set(report.kept[stage]))
            y = torch.zeros_like(x)
            y[:, report.kept[stage]] = found[stage]
            if gone:
                rows = (maps[:half].permute(0, 2, 3, 1).flatten(0, 2) for maps in (found[stage], x[:, gone]))
                weight, bias = least_squares(*rows)
                y[:, gone] = nn.functional.conv2d(found[stage], weight[:, :, None, None], bias)
            error += float((y - x)[half:].square().sum() / x[half:].square().sum())
    return error


def test_real_filters_lose_less_than_under_the_papers_plans(real_data, monkeypatch):
    """On the part of a ResNet-50 whose trained weights are at hand: stem to layer3."""
    weights = read_weights(real_data / "weights" / "resnet50_imagenet_partial.pth")
    dense = resnet50_from_weights(weights, strict=False).eval()
    square = Compose([Resize(128), CenterCrop(128)])
    fit, held_out = (
        [square(read_image(p).as_subclass(torch.Tensor)) / 255 for p in find_images(real_data / "coco" / split, 16)]
        for split in ("train2017", "val2017")
    )
    for module in (sensitivity, cost_table_module, recovery):
        monkeypatch.setattr(module, "BLOCK_NAMES", REAL_BLOCKS)
    monkeypatch.setattr(recovery, "CROP", 128)
    scope = Scope(dense, False, None)
    table = cost_table(scope, "macs", scope.cost(CompressionPlan(), "macs"))
    crops = sensitivity.prepare(fit, 128, torch.device("cpu"))
    with torch.no_grad():
        measured = sensitivity.measure_body(dense, crops, "pabs", torch.Generator().manual_seed(0))
    for name in ("norton-59", "norton-77"):
        paper = load_plan(name)
        paper = CompressionPlan(
            {layer: rank for layer, rank in paper.ranks.items() if "layer4" not in layer},
            {group: rate for group, rate in paper.rates.items() if "layer4" not in group},
        )
        limit = scope.cost(paper, "macs")
        searched = search._as_plan(solve(*search._with_errors(table, measured), limit - table.fixed))
        assert scope.cost(searched, "macs") <= limit
        ours, papers = (left_after_recovery(dense, plan, fit, held_out) for plan in (searched, paper))
        assert ours < 0.95 * papers, name
