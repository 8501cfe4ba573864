import json

import pytest

from norton_det.compression.plan import PRESETS, CompressionPlan, kept_channels, load_plan, parse_notation
from norton_det.models.channels import read_body
from norton_det.models.parts import PARTS
from norton_det.models.structure import BODIES, named_structure, template


def body_of(name):
    return read_body(template(named_structure(None, name, 2)))


RESNET50 = body_of("resnet50")
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
    with pytest.raises(ValueError, match="more than 10000 entries"):
        parse_notation("[0.1]*999999999999")


def test_entries_go_where_the_paper_puts_them():
    plan = CompressionPlan.from_notation("[0.01, 0.02, 0.03, 0.04]+[0.5]*15+[0.6]", RESNET50, rank=2)
    assert [plan.rates[g] for g in ("stem", "layer1", "layer2", "layer3")] == [0.01, 0.02, 0.03, 0.04]
    assert "layer4" not in plan.rates
    assert plan.rates["layer1.0.conv1"] == plan.rates["layer1.0.conv2"] == 0.5
    assert plan.rates["layer4.2.conv2"] == 0.6
    assert plan.ranks == {
        f"layer{stage}.{i}.conv2": 2 for stage, count in enumerate((3, 4, 6, 3), 1) for i in range(count)
    }


def test_widths_are_rounded_down():
    widths = {name: read.width for name, read in RESNET50.groups.items()}
    rates = load_plan("norton-77", RESNET50).rates
    kept = {name: kept_channels(width, rates.get(name, 0.0)) for name, width in widths.items()}
    assert kept_channels(64, 0.3) == 44  # of 44.8
    assert kept["stem"] == 64
    assert kept["layer1"] == int(256 * 0.9) == 230
    assert kept["layer3"] == int(1024 * 0.6)
    assert kept["layer4"] == 2048
    assert kept["layer4.0.conv2"] == 128


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name, tmp_path):
    plan = load_plan(name, RESNET50)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_dict()))
    assert load_plan(path, RESNET50) == plan


@pytest.mark.parametrize("name", PRESETS)
def test_all_adds_the_other_parts_of_a_detector(name, tmp_path):
    plan = load_plan(f"{name}-all", RESNET50)
    body = load_plan(name, RESNET50)
    assert (plan.ranks, plan.rates) == (body.ranks, body.rates)
    assert plan.parts == dict.fromkeys(PARTS, 1) | {"box_head": 128}
    assert load_plan({"notation": PRESETS[name], "parts": plan.parts}, RESNET50) == plan
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_dict()))
    assert load_plan(path, RESNET50) == plan
    assert load_plan(f"{name}-all", RESNET50, rank=2).parts == plan.parts


def test_rank_replaces_every_rank():
    plan = load_plan(PAPER, RESNET50, rank=3)
    assert set(plan.ranks.values()) == {3}
    assert plan.rates == load_plan("norton-77", RESNET50).rates


def test_notation_and_rank_as_a_mapping():
    assert load_plan({"notation": PAPER, "rank": 4}, RESNET50) == load_plan(PAPER, RESNET50, rank=4)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("norton-78", "did you mean 'norton-77'"),
        ("[0.1]*19", "19 entries; a ResNet-50 takes 20: the stem, 3 outputs of stages, 16 blocks"),
        ("[1.0]*20", r"rate of stem must lie in \[0, 1\), got 1.0"),
        ("[-0.1]*20", "must lie in"),
        ("[nan]*20", "must lie in"),
        ({"ranks": {"layer1.0.conv2": 0}}, "whole number from 1 on, got 0"),
        ({"ranks": {"layer1.0.conv2": 1.5}}, "whole number"),
        ({"ranks": {"layer1.0.conv3": 1}}, "no layer to decompose; did you mean"),
        ({"rates": {"layer5": 0.1}}, "no channel group; did you mean"),
        ({"parts": {"nec": 1}}, "no part of a detector; did you mean 'neck'"),
        ({"parts": {"neck": 0}}, "rank of neck must be a whole number"),
        ({"rank": {}}, "ranks, rates and dropped blocks"),
        ({"ranks": [1]}, "must be a mapping"),
    ],
)
def test_wrong_plans_are_named(plan, message):
    with pytest.raises(ValueError, match=message):
        load_plan(plan, RESNET50)


@pytest.mark.parametrize(
    ("body", "plan", "message"),
    [
        ("resnet50", {"rates": {"stem": 0.99}}, "rate 0.99 leaves stem without filters"),
        ("resnet18", {"rates": {"stem": 0.1}}, "'stem' is no channel group"),
        ("resnet18", {"ranks": {"layer1.0.conv3": 1}}, "'layer1.0.conv3' is no layer to decompose; did you mean"),
        ("resnet18", "[0.1]*20", "20 entries; a ResNet-18 takes 12: the stem, 3 outputs of stages, 8 blocks"),
        ("resnet18", "[0.1, 0.2]+[0.1]*10", "sums tie the stem to layer1: .* must agree, got 0.1 and 0.2"),
        (
            "resnext50_32x4d",
            "[0.1]*20",
            r"grouped convolution fixes the channels of layer1\.0\.conv1: rate 0, got 0.1",
        ),
        ("resnext50_32x4d", {"ranks": {"layer1.0.conv2": 1}}, "'layer1.0.conv2' is no layer to decompose"),
    ],
)
def test_what_a_body_cannot_have_is_named(body, plan, message):
    with pytest.raises(ValueError, match=message):
        load_plan(plan, body_of(body))


@pytest.mark.parametrize("name", BODIES)
def test_presets_are_for_bodies_of_the_blocks_of_a_resnet50(name):
    body = body_of(name)
    if name in ("resnet50", "wide_resnet50_2"):
        assert load_plan("norton-77-all", body).rates == load_plan("norton-77-all", RESNET50).rates
        return
    length = (
        rf"made for a ResNet-50's blocks, not for a ResNet-{body.depth}: .* notation with {4 + len(body.blocks)} ent"
    )
    refused = (
        "a grouped convolution fixes" if name == "resnext50_32x4d" else rf"{length}ries, or let search-plan find"
    )
    with pytest.raises(ValueError, match=refused):
        load_plan("norton-59", body)


def test_of_basic_blocks_the_inner_width_is_that_of_the_first_convolution():
    plan = load_plan("[0.1]*2+[0.2, 0.3]+[0.4]*8", body_of("resnet18"))
    assert plan.rates == {
        **{"layer1": 0.1, "layer2": 0.2, "layer3": 0.3},
        **{f"layer{stage}.{i}.conv1": 0.4 for stage in (1, 2, 3, 4) for i in (0, 1)},
    }
    assert list(plan.ranks) == [f"layer{s}.{i}.conv{c}" for s in (1, 2, 3, 4) for i in (0, 1) for c in (1, 2)]


def test_a_plan_file_of_a_resnet50_says_what_it_always_said(tmp_path):
    """As files of earlier versions and of `search-plan` have it."""
    written = {"ranks": {"layer1.0.conv2": 2}, "rates": {"stem": 0.1, "layer4.2.conv1": 0.5}, "parts": {"neck": 1}}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(written))
    plan = load_plan(path, RESNET50)
    assert (plan.ranks, plan.rates, plan.parts) == (written["ranks"], written["rates"], written["parts"])
    assert plan.to_dict() == written


def test_a_file_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"ranks": {')
    with pytest.raises(ValueError, match=r"plan\.json is not JSON"):
        load_plan(path, RESNET50)
