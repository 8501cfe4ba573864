import json

import pytest
from norton_det.models.resnet import SPATIAL_LAYERS, ResNetSpec

from norton_det.compression.plan import PRESETS, CompressionPlan, kept_channels, load_plan, parse_notation

PAPER = "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"


def test_notation_of_the_paper():
    assert parse_notation(PAPER) == [0.0, *[0.1] * 2, *[0.4] * 5, *[0.75] * 12]
    assert parse_notation(" [0, .5] * 2 + [1e-1] ") == [0, 0.5, 0, 0.5, 0.1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0.1",
        "[0.1",
        "[0.1]*",
        "[0.1]+",
        "[]",
        "[a]",
        "[0.1]*-2",
        "[0.1]**2",
        "[0.1] [0.2]",
        "[0.1]*2.5",
        "__import__('os')",
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="plan"):
        parse_notation(text)


def test_huge_repeats_are_refused_quickly():
    with pytest.raises(ValueError, match="far more"):
        parse_notation("[0.1]*999999999999")


def test_entries_go_where_the_paper_puts_them():
    plan = CompressionPlan.from_notation("[0.01, 0.02, 0.03, 0.04]+[0.5]*15+[0.6]", rank=2)
    assert [plan.rates[g] for g in ("stem", "layer1", "layer2", "layer3")] == [0.01, 0.02, 0.03, 0.04]
    assert "layer4" not in plan.rates
    assert plan.rates["layer1.0.conv1"] == plan.rates["layer1.0.conv2"] == 0.5
    assert plan.rates["layer4.2.conv2"] == 0.6
    assert plan.ranks == dict.fromkeys(SPATIAL_LAYERS, 2)


def test_widths_are_rounded_down():
    widths = load_plan("norton-77").apply(ResNetSpec.dense()).widths
    assert kept_channels(64, 0.3) == 44  # of 44.8
    assert widths["stem"] == 64
    assert widths["layer1"] == int(256 * 0.9) == 230
    assert widths["layer3"] == int(1024 * 0.6)
    assert widths["layer4"] == 2048
    assert widths["layer4.0.conv2"] == 128


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name, tmp_path):
    plan = load_plan(name)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_dict()))
    assert load_plan(path) == plan


@pytest.mark.parametrize("name", PRESETS)
def test_all_adds_the_other_parts_of_a_detector(name, tmp_path):
    plan = load_plan(f"{name}-all")
    body = load_plan(name)
    assert (plan.ranks, plan.rates) == (body.ranks, body.rates)
    assert plan.parts == {"neck": 1, "rpn": 1, "box_head": 128, "mask_head": 1, "keypoint_head": 1}
    assert load_plan({"notation": PRESETS[name], "parts": plan.parts}) == plan
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_dict()))
    assert load_plan(path) == plan
    assert load_plan(f"{name}-all", rank=2).parts == plan.parts


def test_rank_replaces_every_rank():
    plan = load_plan(PAPER, rank=3)
    assert set(plan.ranks.values()) == {3}
    assert plan.rates == load_plan("norton-77").rates


def test_notation_and_rank_as_a_mapping():
    assert load_plan({"notation": PAPER, "rank": 4}) == load_plan(PAPER, rank=4)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("norton-78", "did you mean 'norton-77'"),
        ("[0.1]*19", "19 entries; ResNet-50 takes 20"),
        ("[1.0]*20", r"rate of stem must lie in \[0, 1\), got 1.0"),
        ("[-0.1]*20", "must lie in"),
        ("[nan]*20", "must lie in"),
        ({"ranks": {"layer1.0.conv2": 0}}, "whole number from 1 on, got 0"),
        ({"ranks": {"layer1.0.conv2": 1.5}}, "whole number"),
        ({"ranks": {"layer1.0.conv3": 1}}, "no layer to decompose; did you mean"),
        ({"rates": {"layer5": 0.1}}, "no channel group; did you mean"),
        ({"parts": {"nec": 1}}, "no part of a detector; did you mean 'neck'"),
        ({"parts": {"neck": 0}}, "rank of neck must be a whole number"),
        ({"rank": {}}, "ranks and rates"),
        ({"ranks": [1]}, "must be a mapping"),
    ],
)
def test_wrong_plans_are_named(plan, message):
    with pytest.raises(ValueError, match=message):
        load_plan(plan)


def test_a_group_left_without_filters_is_named():
    with pytest.raises(ValueError, match="leaves stem without filters"):
        CompressionPlan(rates={"stem": 0.99}).apply(ResNetSpec.dense())


def test_a_file_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"ranks": {')
    with pytest.raises(ValueError, match=r"plan\.json is not JSON"):
        load_plan(path)
