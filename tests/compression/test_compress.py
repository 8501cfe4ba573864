import pytest
import torch
from detectors import ALL_KINDS, frames, tiny_classifier, tiny_detector
from reference import silenced
from torch import nn
from torchvision.models import resnet18
from torchvision.ops.misc import FrozenBatchNorm2d

import norton_det
from norton_det.compression.compress import apply_structure, compress
from norton_det.compression.plan import CompressionPlan, kept_channels, load_plan
from norton_det.compression.saliency import group_scores, kept_filters
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.channels import read_body
from norton_det.models.norms import freeze_batch_norms
from norton_det.models.parts import part_layers
from norton_det.models.structure import named_structure, template
from norton_det.models.weights import read_dense_weights, read_weights

IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network():
    return tiny_classifier()


BODY = read_body(tiny_classifier())


def test_rate_zero_and_full_rank_is_the_identity(network):
    compressed, report = compress(network, CompressionPlan(dict.fromkeys(BODY.spatial, 9)))
    expected = network(IMAGE)
    torch.testing.assert_close(compressed(IMAGE), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert max(row.nmse for row in report.layers if row.rank) < 1e-10


def test_an_empty_plan_changes_no_tensor(network):
    compressed, report = compress(network, CompressionPlan())
    for name, tensor in network.state_dict().items():
        assert torch.equal(compressed.state_dict()[name], tensor), name
    assert all(kept == list(range(len(kept))) for kept in report.kept.values())


@pytest.mark.parametrize("plan", ["norton-77", "[0.3]*20"])
@pytest.mark.parametrize("rank", [1, 3])
def test_pruning_equals_silencing_the_dropped_channels(network, plan, rank):
    plan = load_plan(plan, BODY, rank)
    decomposed, _ = compress(network, CompressionPlan(plan.ranks))
    compressed, report = compress(network, plan)
    with silenced(decomposed, report.kept), torch.no_grad():
        expected = decomposed(IMAGE)
    torch.testing.assert_close(compressed(IMAGE), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_structure_is_the_plans(network):
    plan = load_plan("norton-77", BODY, 2)
    compressed, report = compress(network, plan)
    widths = {name: kept_channels(group.width, plan.rates.get(name, 0)) for name, group in BODY.groups.items()}
    assert {name: group.width for name, group in read_body(compressed).groups.items()} == widths
    assert {name: len(kept) for name, kept in report.kept.items()} == widths
    ranks = {name: layer.rank for name, layer in compressed.named_modules() if isinstance(layer, CPConv2d)}
    assert ranks == dict.fromkeys(BODY.spatial, 2)
    for row in report.layers:
        layer = compressed.get_submodule(row.name)
        assert row.compressed_shape[:2] == (layer.out_channels, layer.in_channels)
        assert row.compressed_parameters == sum(p.numel() for p in layer.parameters())


def test_the_report_tells_the_error_of_each_decomposition(network):
    layers = ["layer1.0.conv2", "layer3.1.conv2"]
    compressed, report = compress(network, CompressionPlan(dict.fromkeys(layers, 2)))
    decomposed = {row.name: row.nmse for row in report.layers if row.rank}
    assert list(decomposed) == layers
    for name, error in decomposed.items():
        before, after = (model.get_submodule(name).weight for model in (network, compressed))
        assert error == pytest.approx(((before - after).norm() / before.norm()).item() ** 2, rel=1e-3)


def test_a_classifier_reads_what_is_left_of_the_last_stage(network):
    compressed, report = compress(network, CompressionPlan(rates={"layer4": 0.5}))
    assert compressed.fc.in_features == compressed.fc.weight.shape[1] == len(report.kept["layer4"]) == 128
    compressed(IMAGE)


def test_what_is_frozen_stays_frozen(network):
    for part in (network.conv1, network.bn1, network.layer1, network.fc):
        part.requires_grad_(False)
    compressed, _ = compress(network, CompressionPlan(rates=dict.fromkeys(BODY.groups, 0.3)))
    flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in compressed.named_parameters()} == flags


def test_factors_of_a_frozen_layer_are_frozen(network):
    network.layer1.requires_grad_(False)
    compressed, _ = compress(network, load_plan("norton-59", BODY))
    assert not any(parameter.requires_grad for parameter in compressed.layer1.parameters())
    assert all(parameter.requires_grad for parameter in compressed.layer2.parameters())


def test_a_bias_goes_with_its_filters(network):
    network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 7, 2, 3)
    compressed, _ = compress(network, CompressionPlan(rates={"stem": 0.3}))
    assert compressed.conv1.bias.shape == (compressed.conv1.out_channels,)
    compressed(torch.rand(1, 3, 64, 64))


def test_the_model_itself_is_left_alone(network):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    compress(network, load_plan("norton-77", BODY))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet_v2"])
def test_a_detectors_pyramid_follows(kind):
    dense = tiny_detector(kind)
    dense.categories = ["__background__", "a", "b"]
    compressed, report = compress(dense, load_plan("norton-77", read_body(dense)))
    laterals = compressed.backbone.fpn.inner_blocks
    stages = ("layer1", "layer2", "layer3", "layer4")[-len(laterals) :]
    assert [block[0].in_channels for block in laterals] == [len(report.kept[stage]) for stage in stages]
    expected = dense.backbone.fpn.inner_blocks[-2][0].weight[:, report.kept["layer3"]]
    assert torch.equal(laterals[-2][0].weight, expected)
    assert compressed.categories == dense.categories
    compressed(frames(1))


PARTS_OF = {
    "faster_rcnn": {"neck", "rpn", "box_head"},
    "mask_rcnn": {"neck", "rpn", "box_head", "mask_head"},
    "keypoint_rcnn": {"neck", "rpn", "box_head", "keypoint_head"},
    "faster_rcnn_v2": {"neck", "rpn", "box_convs", "box_head"},
    "mask_rcnn_v2": {"neck", "rpn", "box_convs", "box_head", "mask_head"},
    "retinanet": {"neck", "classification_head", "regression_head"},
    "retinanet_v2": {"neck", "classification_head", "regression_head"},
    "fcos": {"neck", "classification_head", "regression_head"},
}
LAYERS_OF = {
    **{
        "neck": {3, 4, 5},
        "rpn": {1, 2},
        "box_convs": {4},
        "box_head": {1, 2},
        "mask_head": {4},
        "keypoint_head": {8},
    },
    **{"classification_head": {4}, "regression_head": {4}},
}


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_other_parts_of_a_detector_are_factorised(kind):
    dense = tiny_detector(kind, "resnet18")
    ranks = {part: rank for rank, part in enumerate(LAYERS_OF, start=1)}
    compressed, report = compress(dense, CompressionPlan(parts=ranks))
    rows = {row.name: row for row in report.layers if row.rank}
    layers = {part: part_layers(compressed, part) for part in ranks}
    assert {part for part, names in layers.items() if names} == PARTS_OF[kind]
    assert {name: row.rank for name, row in rows.items()} == {
        name: ranks[part] for part, names in layers.items() for name in names
    }
    for part in PARTS_OF[kind]:
        assert len(layers[part]) in LAYERS_OF[part]
    assert all(0 < row.nmse < 1 for row in rows.values())
    compressed(frames(1))


@pytest.mark.parametrize("kind", ["mask_rcnn_v2", "keypoint_rcnn", "retinanet"])
def test_parts_at_full_rank_are_what_they_were(kind):
    dense = tiny_detector(kind, "resnet18")
    full = dict.fromkeys(LAYERS_OF, 9) | {"box_head": 64 * 49}
    _, report = compress(dense, CompressionPlan(parts=full))
    assert max(row.nmse for row in report.layers if row.rank) < 1e-9


def test_a_classifier_has_no_other_parts(network):
    _, report = compress(network, load_plan("norton-77-all", BODY))
    assert {row.name for row in report.layers} == {
        conv for group in BODY.groups.values() for conv, _ in group.producers
    }


def test_frozen_batch_norm_of_eps_0_becomes_trainable():
    frozen = tiny_detector("faster_rcnn", "resnet18")
    freeze_batch_norms(frozen)
    for module in frozen.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    compressed, _ = compress(frozen, CompressionPlan())
    norm = compressed.backbone.body["layer1"][0].bn2
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.eps == 1e-12
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(compressed.backbone(x)["0"], frozen.backbone(x)["0"])


@pytest.mark.parametrize("criterion", ["pabs", "csa", "vbd"])
def test_identical_filters_are_dropped_first(criterion):
    torch.manual_seed(0)
    layer = CPConv2d(8, 6, 3, rank=1, padding=1, bias=False)
    for factor in (layer.channel, layer.vertical, layer.horizontal):
        factor.data[:, 4] = factor.data[:, 1]
    kept = kept_filters(group_scores([(layer, nn.BatchNorm2d(6))], criterion), 5).tolist()
    assert len({1, 4} & set(kept)) == 1


@pytest.mark.parametrize("members", [1, 3])
def test_dense_filters_are_ranked_by_how_much_their_channel_varies_behind_the_relu(members):
    """Against draws: BatchNorm gives each channel the mean beta and the standard deviation |gamma|."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(6) for _ in range(members)]
    for norm in norms:
        norm.weight.data = torch.tensor([0.0, 0.1, -1.0, 1.0, 2.0, 1.0])
        norm.bias.data = torch.tensor([3.0, 0.5, 0.0, -2.0, 1.0, 5.0]) * torch.rand(6)
    draws = sum(norm.bias + norm.weight * torch.randn(400_000, 6) for norm in norms)
    scores = group_scores([(nn.Conv2d(1, 6, 1), norm) for norm in norms])
    torch.testing.assert_close(scores.float(), draws.relu().std(dim=0), rtol=0.01, atol=1e-4)
    assert scores[0] == 0


def test_the_deviation_criterion_ranks_cp_convolutions_by_it_too():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.weight)
    cp, dense = CPConv2d(8, 6, 3, rank=1, bias=False), nn.Conv2d(8, 6, 3)
    assert torch.equal(group_scores([(cp, norm)], "deviation"), group_scores([(dense, norm)]))


def test_unknown_criterion_is_refused(network):
    with pytest.raises(ValueError, match="'l1' is not one of"):
        compress(network, load_plan("norton-77", BODY), criterion="l1")


def test_a_filter_that_is_not_finite_is_named(network):
    network.get_submodule("layer2.1.conv2").weight.data[3, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layer2\.1\.conv2.*3"):
        compress(network, load_plan("norton-43", BODY))


def test_a_compressed_model_is_not_compressed_again(network, tmp_path):
    for plan in ("norton-43", "pruned"):
        planned = CompressionPlan(rates={"layer1": 0.5}) if plan == "pruned" else load_plan(plan, BODY)
        compressed, _ = compress(network, planned)
        norton_det.save(compressed, tmp_path / "compressed.pth")
        assert read_weights(tmp_path / "compressed.pth").is_compressed
        for model in (compressed, norton_det.load_resnet(tmp_path / "compressed.pth")):
            with pytest.raises(ValueError, match="compressed already"):
                compress(model, load_plan("norton-43", BODY))
        with pytest.raises(ValueError, match="is compressed already"):
            read_dense_weights(tmp_path / "compressed.pth")


@pytest.mark.parametrize("body", ["wide_resnet50_2", "half width"])
def test_dense_networks_of_other_widths_are_dense_and_take_presets(body, real_data, tmp_path):
    if body == "half width":
        path = real_data / "weights" / "resnet50_half_width_real.pth"
    else:
        path = tmp_path / "wide.pth"
        torch.save(tiny_classifier(body).state_dict(), path)
    weights = read_dense_weights(path)
    network = norton_det.load_resnet(path)
    compressed, report = norton_det.compress(network, "norton-77")
    inner = [network.layer1[0].conv2.out_channels, compressed.layer1[0].conv2.out_channels]
    assert inner[1] == int(inner[0] * (1 - load_plan("norton-77", BODY).rates["layer1.0.conv2"]))
    norton_det.save(compressed, tmp_path / "compressed.pth")
    assert not weights.is_compressed and read_weights(tmp_path / "compressed.pth").is_compressed
    assert torch.equal(norton_det.load_resnet(tmp_path / "compressed.pth")(IMAGE), compressed.eval()(IMAGE))
    assert sum(len(kept) for kept in report.kept.values()) > 0


def test_torchvisions_resnet_is_taken():
    compressed, _ = compress(resnet18(num_classes=5), CompressionPlan({"layer1.0.conv2": 1}, {"layer3": 0.5}))
    assert compressed.eval()(IMAGE).shape == (2, 5)


@pytest.mark.parametrize(
    ("preset", "parameters"), [("norton-43", 14_509_496), ("norton-59", 10_525_342), ("norton-77", 5_885_736)]
)
def test_published_parameter_counts_of_a_classifier(preset, parameters):
    network = apply_structure(template(named_structure(None, "resnet50", 1000)), load_plan(preset, BODY))
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("kind", "classes", "dense", "norton"),
    [
        ("faster_rcnn", 91, 41_808_406, 22_012_182),
        ("mask_rcnn", 91, 44_454_513, 24_658_289),
        ("keypoint_rcnn", 2, 59_190_378, 39_394_154),
    ],
)
def test_published_parameter_counts_of_detectors(kind, classes, dense, norton):
    detector = template(named_structure(kind, "resnet50", classes))
    assert sum(p.numel() for p in detector.parameters()) == dense
    apply_structure(detector, load_plan("norton-77", read_body(detector)))
    assert sum(p.numel() for p in detector.parameters()) == norton
