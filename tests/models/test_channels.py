"""Channels that must be chosen together are read off the network: against a rule written by hand for ResNet-50."""

import pytest
import torch
from detectors import ALL_KINDS, BODIES, tiny_classifier, tiny_detector
from torch import nn
from torchvision.models import resnet50

from norton_det.compression.compress import compress
from norton_det.compression.plan import CompressionPlan, kept_channels
from norton_det.models.channels import read_body
from norton_det.models.structure import named_structure, template


def rule_of_resnet50():
    """By name of the group, its producers and readers: stem, four stage outputs, two inner widths a block."""
    groups = {"stem": ({("conv1", "bn1")}, {"layer1.0.conv1", "layer1.0.downsample.0"})}
    for index, count in enumerate((3, 4, 6, 3), start=1):
        stage, after = f"layer{index}", f"layer{index + 1}"
        shortcut = (f"{stage}.0.downsample.0", f"{stage}.0.downsample.1")
        last = {(f"{stage}.{i}.conv3", f"{stage}.{i}.bn3") for i in range(count)}
        inside = {f"{stage}.{i}.conv1" for i in range(1, count)}
        behind = {f"{after}.0.conv1", f"{after}.0.downsample.0"} if index < 4 else {"fc"}
        groups[stage] = ({*last, shortcut}, inside | behind)
        for block in (f"{stage}.{i}" for i in range(count)):
            for first, second in ((1, 2), (2, 3)):
                conv = f"{block}.conv{first}"
                groups[conv] = ({(conv, f"{block}.bn{first}")}, {f"{block}.conv{second}"})
    return groups


def read(model):
    return {name: (set(g.producers), set(g.readers)) for name, g in read_body(model).groups.items()}


def body_of(kind, body="resnet50"):
    return read_body(template(named_structure(kind, body, 2)))


def test_groups_of_a_resnet50_are_those_of_the_rule():
    with torch.device("meta"):
        assert read(resnet50()) == rule_of_resnet50()


def test_a_detector_has_the_same_groups_which_its_pyramid_reads():
    expected = {
        name: (
            {tuple(f"backbone.body.{part}" for part in pair) for pair in producers},
            {f"backbone.body.{reader}" for reader in readers if reader != "fc"},
        )
        for name, (producers, readers) in rule_of_resnet50().items()
    }
    for level, stage in enumerate(("layer1", "layer2", "layer3", "layer4")):
        expected[stage][1].add(f"backbone.fpn.inner_blocks.{level}.0")
    assert read(template(named_structure("mask_rcnn", "resnet50", 2))) == expected


@pytest.mark.parametrize("body", BODIES)
def test_every_convolution_is_produced_once_and_reads_once(body):
    network = template(named_structure(None, body, 2))
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    groups = read_body(network).groups.values()
    assert sorted(conv for group in groups for conv, _ in group.producers) == sorted(convolutions)
    assert sorted(layer for group in groups for layer in group.readers) == sorted([*convolutions[1:], "fc"])


@pytest.mark.parametrize("body", ["resnet18", "resnet34"])
def test_sums_of_basic_blocks_tie_the_stem_to_the_first_stage(body):
    groups = body_of(None, body).groups
    assert "stem" not in groups
    assert ("conv1", "bn1") in groups["layer1"].producers
    assert "conv1" not in [conv for name, group in groups.items() if name != "layer1" for conv, _ in group.producers]


@pytest.mark.parametrize(
    ("body", "fixed"), [("resnext50_32x4d", True), ("resnet50", False), ("wide_resnet50_2", False)]
)
def test_grouped_convolutions_fix_the_inner_channels_alone(body, fixed):
    read = body_of("faster_rcnn", body)
    inner = {name for block in read.blocks for name in block.inner}
    assert {name for name, group in read.groups.items() if group.fixed} == (inner if fixed else set())
    assert bool(read.spatial) != fixed


@pytest.mark.parametrize(("kind", "reads"), [("retinanet", False), ("retinanet_v2", True), ("fcos", False)])
def test_a_sixth_level_reads_the_last_stage_or_the_pyramid(kind, reads):
    readers = {name: group.readers for name, group in body_of(kind).groups.items()}
    p6 = "backbone.fpn.extra_blocks.p6"
    assert [name for name, layers in readers.items() if p6 in layers] == (["layer4"] if reads else [])


@pytest.mark.parametrize(("width", "levels"), [(1.0, "c5p6p7"), (0.125, "c5p6p7"), (0.125, "p6p7")])
def test_what_a_sixth_level_reads_stays_when_widths_agree(width, levels):
    """torchvision decides it by comparing widths: 2048 x 0.125 channels are as many as the pyramid's 256."""
    detector = tiny_detector("retinanet_v2", width=width, channels=256, extra=levels)
    assert detector.backbone.fpn.extra_blocks.use_P5 == (levels == "p6p7")
    compressed, report = compress(detector, CompressionPlan(rates={"layer4": 0.5}))
    reads = len(report.kept["layer4"]) if levels == "c5p6p7" else 256
    assert compressed.backbone.fpn.extra_blocks.p6.in_channels == reads


@pytest.mark.parametrize(
    ("body", "depth", "blocks"),
    [
        ("resnet18", 18, (2, 2, 2, 2)),
        ("resnet34", 34, (3, 4, 6, 3)),
        ("resnet101", 101, (3, 4, 23, 3)),
        ("resnet152", 152, (3, 8, 36, 3)),
        ("wide_resnet101_2", 101, (3, 4, 23, 3)),
    ],
)
def test_depth_blocks_and_spatial_layers(body, depth, blocks):
    read = body_of(None, body)
    basic = depth < 50
    assert (read.depth, read.blocks_of_stages) == (depth, blocks)
    assert len(read.spatial) == sum(blocks) * (2 if basic else 1)
    assert read.last_block("layer3").name == f"layer3.{blocks[2] - 1}"
    assert read.blocks[0].inner == (("layer1.0.conv1",) if basic else ("layer1.0.conv1", "layer1.0.conv2"))


@pytest.mark.parametrize("kind", [None, *ALL_KINDS])
def test_a_compressed_model_has_the_same_groups_of_smaller_widths(kind):
    model = tiny_classifier("resnet18") if kind is None else tiny_detector(kind, "resnet18")
    before = read_body(model)
    ranks = {layer: 1 for layer in before.spatial[::2]}
    compressed, _ = compress(model, CompressionPlan(ranks, dict.fromkeys(before.groups, 0.3), {"neck": 1}))
    after = read_body(compressed)
    assert (after.blocks, read(compressed)) == (before.blocks, read(model))
    widths = {name: kept_channels(group.width, 0.3) for name, group in before.groups.items()}
    assert {name: group.width for name, group in after.groups.items()} == widths


def test_a_model_without_a_resnet_is_refused():
    with pytest.raises(ValueError, match=r"no ResNet in a Linear: it has no layer1\.0\.conv1"):
        read_body(nn.Linear(2, 2))
