"""Plans that a search finds: within their budgets, from errors that were measured."""

import copy
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectors import frames, tiny_detector
from searched_models import (
    DETECTORS,
    MODELS,
    OPTIONS,
    RANK_ONE,
    counted,
    measured,
    model_of,
)
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.transforms.v2 import CenterCrop, Compose, Resize

from norton_det.analysis.complexity import count
from norton_det.compression import recover as recovery
from norton_det.compression.compress import compress
from norton_det.compression.least_squares import least_squares
from norton_det.compression.plan import CompressionPlan, load_plan
from norton_det.compression.recover import recover
from norton_det.compression.search import plan_search as search
from norton_det.compression.search.body_sensitivities import centre_crops, measure_body
from norton_det.compression.search.budget import Budget, Scope
from norton_det.compression.search.choice import solve
from norton_det.compression.search.cost_table import cost_table
from norton_det.compression.search.options import UNCHANGED, block_options, pruned_stages
from norton_det.compression.search.part_sensitivities import measure_parts
from norton_det.compression.search.plan_search import best_plan, measure_sensitivities, search_plan
from norton_det.data.images import find_images, read_image
from norton_det.models.channels import read_body
from norton_det.models.persistence import resnet_from_weights
from norton_det.models.weights import read_weights


@pytest.fixture(scope="module")
def images():
    return frames(6, 64, 80)


@pytest.fixture(scope="module")
def sensitivities(network, images):
    return measure_sensitivities(network, images)


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_keeps_its_budget_and_the_smallest_is_named(name):
    """Counted on the network that is really compressed."""
    model, whole, size = model_of(name), name in DETECTORS, (64, 96)
    least = smallest(model, measured(name), "macs", size)
    errors = []
    for share in (least, (1 + least) / 2):
        plan, report = best_plan(model, measured(name), Budget("macs", share, size))
        compressed, _ = compress(model, plan)
        assert counted(compressed, size, whole).macs == report.cost <= share * report.dense_cost
        assert report.dense_cost == counted(model, size, whole).macs
        errors.append(report.predicted_error)
    assert errors[0] > errors[1] > 0


@pytest.mark.parametrize("name", MODELS)
def test_every_choice_of_a_network_is_measured(name):
    body, found = read_body(model_of(name)), measured(name)
    assert {block: len(errors) for block, errors in found.blocks.items()} == {
        block.name: len(block_options(body, block)) for block in body.blocks
    }
    assert set(found.stages) == {"layer1", "layer2", "layer3"}
    for errors in (*found.blocks.values(), *found.stages.values()):
        unchanged, *others = errors
        assert unchanged == 0
        assert all(0 < error < 50 for error in others)


def test_grouped_convolutions_leave_a_block_as_it_is():
    body = read_body(model_of("resnext50_32x4d"))
    assert {block_options(body, block) for block in body.blocks} == {(UNCHANGED,)}
    plan, _ = best_plan(model_of("resnext50_32x4d"), measured("resnext50_32x4d"), Budget("macs", 0.9, (64, 64)))
    assert not plan.ranks
    assert set(plan.rates) <= set(pruned_stages(body))


def test_more_budget_never_foretells_more_error(network, sensitivities):
    budgets = [0.4, 0.7, 1.0]
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


def test_the_same_seed_gives_the_same_plan_and_a_budget_may_be_text(images):
    found = search_plan(model_of("resnet18"), images, "macs=0.5")
    assert found == best_plan(model_of("resnet18"), measured("resnet18"), Budget("macs", 0.5))


def test_a_layer_that_rank_one_loses_nothing_of_gets_rank_one(network, sensitivities):
    errors = sensitivities.blocks[RANK_ONE.removesuffix(".conv2")]
    options = dict(zip(OPTIONS, errors, strict=False))
    others = [dict(zip(OPTIONS, e, strict=False))[1, 0.0] for e in sensitivities.blocks.values()]
    assert options[1, 0.0] < 0.1 * float(np.median(others))
    count = len(OPTIONS)
    nothing_dropped = {name: [*e[:count], *[9.0] * len(e[count:])] for name, e in sensitivities.blocks.items()}
    sensitivities = replace(sensitivities, blocks=nothing_dropped)
    for share in (0.6, 0.8):
        assert best_plan(network, sensitivities, Budget("macs", share))[0].ranks[RANK_ONE] == 1


def test_channels_that_are_silent_cost_nothing_to_drop(network, images):
    """Every other inner channel of one block gives zeros: a rate of a half loses nothing, one of 0.6 does."""
    silenced = copy.deepcopy(network)
    for norm in ("bn1", "bn2"):
        for name in ("weight", "bias"):
            silenced.get_parameter(f"layer2.1.{norm}.{name}").data[::2] = 0
    options = dict(zip(OPTIONS, measure_sensitivities(silenced, images).blocks["layer2.1"], strict=False))
    assert options[None, 0.5] < 1e-3 * options[None, 0.75]
    assert options[None, 0.6] > 10 * options[None, 0.5]


def test_the_plan_file_is_a_plan(network, sensitivities, tmp_path):
    plan, report = best_plan(network, sensitivities, Budget("macs", 0.4))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_dict()))
    assert load_plan(path, read_body(network)) == plan
    compressed, _ = compress(network, load_plan(path, read_body(network)))
    counted = count(compressed, torch.zeros(1, 3, 224, 224))[""].macs
    assert counted == report.cost
    assert counted <= 0.4 * count(network, torch.zeros(1, 3, 224, 224))[""].macs
    assert set(plan.ranks) <= set(read_body(network).spatial)


def smallest(model, sensitivities, kind, size=None):
    with pytest.raises(ValueError, match="impossible") as caught:
        best_plan(model, sensitivities, Budget(kind, 1e-3, size))
    return float(str(caught.value).rsplit("=", 1)[1])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mask_rcnn", {"neck", "rpn", "box_head", "mask_head"}),
        ("retinanet", {"neck", "classification_head", "regression_head"}),
    ],
)
def test_a_whole_detector_is_planned_part_by_part(name, parts):
    detector, found = model_of(name), measured(name)
    assert set(found.parts) == parts
    for kind, planned in (("macs", parts - {"mask_head"}), ("parameters", parts)):
        plan, _ = best_plan(detector, found, Budget(kind, smallest(detector, found, kind, (64, 64)), (64, 64)))
        assert set(plan.parts) == planned  # the mask head's MACs stand beside the total


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("keypoint_rcnn", ["neck", "rpn", "box_head", "keypoint_head"]),
        ("mask_rcnn_v2", ["neck", "rpn", "box_convs", "box_head", "mask_head"]),
        ("retinanet_v2", ["neck", "classification_head", "regression_head"]),
        ("fcos", ["neck", "classification_head", "regression_head"]),
    ],
)
def test_errors_of_parts_fall_with_rank(kind, parts):
    detector = tiny_detector(kind, "resnet18", box=256, mask=8)
    found = measure_parts(detector, centre_crops(detector, frames(8), 64))
    assert list(found) == parts
    for unchanged, *by_rank in found.values():
        assert unchanged == 0
        assert 0 < by_rank[-1] < by_rank[0]


def test_a_detectors_body_alone_leaves_its_parts():
    found = replace(measured("retinanet"), parts={})
    plan, _ = best_plan(model_of("retinanet"), found, Budget("macs", 0.4, (64, 64)))
    assert not plan.parts
    assert plan.rates


def test_a_detectors_own_normalisation_is_used(images):
    detector = tiny_detector("retinanet", "resnet18")
    detector.transform.image_mean, detector.transform.image_std = [0.0, 0.5, 1.0], [1.0, 0.5, 0.25]
    crops = centre_crops(detector, images[:1], 64)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in ([0.0, 0.5, 1.0], [1.0, 0.5, 0.25]))
    square = Compose([Resize(64), CenterCrop(64)])
    torch.testing.assert_close(crops[0], (square(images[0]) - mean) / deviation)


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


def test_what_cannot_be_is_refused_before_anything_is_measured(network, images, monkeypatch):
    monkeypatch.setattr(search, "measure_sensitivities", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"macs=0.01 is impossible: the smallest is macs=0\.\d+$"):
        search_plan(network, images, Budget("macs", 0.01))
    with pytest.raises(ValueError, match="a classifier's"):
        search_plan(network, images, Budget("macs", 0.5), whole_detector=True)
    compressed, _ = compress(network, load_plan("norton-59", read_body(network)))
    with pytest.raises(ValueError, match="compressed already"):
        search_plan(compressed, images, Budget("macs", 0.5))


def test_more_images_than_help_are_left_aside(network, images, monkeypatch):
    asked = []
    monkeypatch.setattr(search, "MOST_IMAGES", 4)
    monkeypatch.setattr(search, "measure_body", lambda model, body, batch, *_: asked.append(len(batch)))
    measure_sensitivities(network, images)
    assert asked == [4]


def test_the_heads_errors_weigh_as_their_mean():
    table, parts = (
        cost_table(Scope(model_of("mask_rcnn"), True, (64, 64)), "parameters", 1e9),
        measured("mask_rcnn").parts,
    )
    _, items = search._with_errors(table, measured("mask_rcnn"))
    assert items["neck"].errors == pytest.approx(parts["neck"])
    for head in ("rpn", "box_head", "mask_head"):
        assert items[head].errors == pytest.approx([error / 3 for error in parts[head]])


def test_without_images_nothing_is_measured(network):
    with pytest.raises(ValueError, match="at least 2 images, got 0"):
        measure_sensitivities(network, [])


def first_stages(network, images):
    """The outputs of the stages but the last."""
    return IntermediateLayerGetter(network, {name: name for name in ("layer1", "layer2", "layer3")})(images)


def left_after_recovery(dense, plan, fit, images):
    """The share of energy that the stages' outputs have lost, added up, on images that nothing was fitted on.

    Recovery is short. The channels that are gone are guessed from those that are left.
    """
    compressed, report = compress(dense, plan)
    recovered, _ = recover(compressed, dense, fit, report.kept, steps=30)
    with torch.no_grad():
        half, both = len(fit), centre_crops(dense, [*fit, *images], 128)
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
    """On the part of a ResNet-50 whose trained weights are at hand, stem to layer3, whose output stays whole."""
    weights = read_weights(real_data / "weights" / "resnet50_imagenet_partial.pth")
    dense = resnet_from_weights(weights, strict=False)
    body = read_body(dense)

    def without_layer4(model):
        body = read_body(model)
        return replace(body, blocks=tuple(block for block in body.blocks if block.stage != "layer4"))

    trained = without_layer4(dense)
    square = Compose([Resize(128), CenterCrop(128)])
    fit, held_out = (
        [square(read_image(p).as_subclass(torch.Tensor)) / 255 for p in find_images(real_data / "coco" / split, 16)]
        for split in ("train2017", "val2017")
    )
    monkeypatch.setattr(recovery, "read_body", without_layer4)
    monkeypatch.setattr(recovery, "CROP", 128)
    scope = Scope(dense, False, None)
    scope.body = trained
    table = cost_table(scope, "macs", scope.cost(CompressionPlan(), "macs"))
    found = measure_body(dense, trained, centre_crops(dense, fit, 128), "pabs", torch.Generator().manual_seed(0))
    inner = {group for block in trained.blocks for group in block.inner}
    paper = load_plan("norton-59", body)
    paper = CompressionPlan(
        {layer: rank for layer, rank in paper.ranks.items() if layer in trained.spatial},
        {group: rate for group, rate in paper.rates.items() if group in {*inner, *pruned_stages(trained)}},
    )
    limit = scope.cost(paper, "macs")
    searched = search._as_plan(trained, solve(*search._with_errors(table, found), limit - table.fixed))
    assert scope.cost(searched, "macs") <= limit
    ours, papers = (left_after_recovery(dense, plan, fit, held_out) for plan in (searched, paper))
    assert ours < 0.95 * papers
