import pytest
import torch
from norton_det.models.detectors import DetectorSettings, DetectorSpec, build_from_spec
from norton_det.models.resnet import GROUPS, SPATIAL_LAYERS, ResNetSpec, build_resnet50
from reference import perturb_batch_norms, silenced
from torch import nn
from torchvision.models import resnet50
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from norton_det.compression.compress import compress
from norton_det.compression.plan import CompressionPlan, load_plan
from norton_det.compression.saliency import group_scores, kept_filters
from norton_det.layers.cp_conv import CPConv2d

IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return perturb_batch_norms(build_resnet50(ResNetSpec.dense(0.25), num_classes=10)).eval()


def test_rate_zero_and_full_rank_is_the_identity(network):
    compressed, report = compress(network, CompressionPlan(dict.fromkeys(SPATIAL_LAYERS, 9)))
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
    plan = load_plan(plan, rank)
    decomposed, _ = compress(network, CompressionPlan(plan.ranks))
    compressed, report = compress(network, plan)
    expected = silenced(decomposed, report.kept, IMAGE)
    torch.testing.assert_close(compressed(IMAGE), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_structure_is_the_plans(network):
    plan = load_plan("norton-77", 2)
    compressed, report = compress(network, plan)
    spec = plan.apply(ResNetSpec.dense(0.25))
    assert ResNetSpec.from_state_dict(compressed.state_dict()) == spec
    assert {name: len(kept) for name, kept in report.kept.items()} == spec.widths
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
    assert compressed.fc.in_features == compressed.fc.weight.shape[1] == len(report.kept["layer4"]) == 256
    compressed(IMAGE)


def test_what_is_frozen_stays_frozen(network):
    for part in (network.conv1, network.bn1, network.layer1, network.fc):
        part.requires_grad_(False)
    compressed, _ = compress(network, CompressionPlan(rates=dict.fromkeys(GROUPS, 0.3)))
    flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in compressed.named_parameters()} == flags


def test_the_model_itself_is_left_alone(network):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    compress(network, load_plan("norton-77"))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_detector_keeps_running_and_its_pyramid_follows():
    torch.manual_seed(0)
    dense = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=64, max_size=64).eval()
    dense.categories = ["__background__", "a"]
    compressed, report = compress(dense, load_plan("norton-77"))
    laterals = compressed.backbone.fpn.inner_blocks
    assert [block[0].in_channels for block in laterals] == [len(report.kept[f"layer{i}"]) for i in (1, 2, 3, 4)]
    expected = dense.backbone.fpn.inner_blocks[2][0].weight[:, report.kept["layer3"]]
    assert torch.equal(laterals[2][0].weight, expected)
    assert compressed.categories == dense.categories
    compressed([torch.rand(3, 64, 64)])


SMALL = {"fpn_channels": 16, "box_channels": 24, "mask_channels": 8, "keypoint_channels": 12}
SETTINGS = DetectorSettings(min_size=(64,), max_size=64)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "keypoint_rcnn"])
def test_the_other_parts_of_a_detector_are_factorised(kind):
    torch.manual_seed(0)
    dense = build_from_spec(DetectorSpec(kind, 5, ResNetSpec.dense(0.25), **SMALL, settings=SETTINGS)).eval()
    plan = CompressionPlan(parts={"neck": 1, "rpn": 2, "box_head": 10, "mask_head": 1, "keypoint_head": 3})
    compressed, report = compress(dense, plan)
    rows = {row.name: row for row in report.layers}
    assert rows["rpn.head.conv.0.0"].rank == 2
    assert 0 < rows["roi_heads.box_head.fc6"].nmse < 1
    expected = DetectorSpec.from_state_dict(compressed.state_dict(), SETTINGS)
    heads = {"faster_rcnn": [], "mask_rcnn": ["mask_head"], "keypoint_rcnn": ["keypoint_head"]}[kind]
    assert expected.part_ranks == {part: plan.parts[part] for part in ("neck", "rpn", "box_head", *heads)}
    again = build_from_spec(expected).eval()
    again.load_state_dict(compressed.state_dict())
    image = [torch.rand(3, 64, 64)]
    torch.testing.assert_close(again(image), compressed(image))


@pytest.mark.parametrize("kind", ["mask_rcnn", "keypoint_rcnn"])
def test_parts_at_full_rank_are_what_they_were(kind):
    torch.manual_seed(0)
    dense = build_from_spec(DetectorSpec(kind, 5, ResNetSpec.dense(0.25), **SMALL, settings=SETTINGS)).eval()
    full = {"neck": 9, "rpn": 9, "box_head": 24, "mask_head": 9, "keypoint_head": 9}
    image = [torch.rand(3, 64, 64)]
    torch.testing.assert_close(
        compress(dense, CompressionPlan(parts=full))[0](image), dense(image), rtol=1e-4, atol=1e-3
    )


def test_a_classifier_has_no_other_parts(network):
    _, report = compress(network, load_plan("norton-77-all"))
    assert {row.name for row in report.layers} == {conv for group in GROUPS.values() for conv, _ in group.producers}


def test_frozen_batch_norm_of_eps_0_becomes_trainable():
    torch.manual_seed(0)
    frozen = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, norm_layer=None, min_size=64)
    from norton_det.models.norms import freeze_batch_norms

    for module in frozen.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    perturb_batch_norms(frozen)
    freeze_batch_norms(frozen)
    compressed, _ = compress(frozen, CompressionPlan())
    norm = compressed.backbone.body["layer1"][0].bn2
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.eps == 1e-12
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(compressed.eval().backbone(x)["0"], frozen.eval().backbone(x)["0"])


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
        compress(network, load_plan("norton-77"), criterion="l1")


def test_a_filter_that_is_not_finite_is_named(network):
    network.get_submodule("layer2.1.conv2").weight.data[3, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layer2\.1\.conv2.*3"):
        compress(network, load_plan("norton-43"))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), "compressed"])
def test_other_models_are_refused(network, model):
    if model == "compressed":
        model, _ = compress(network, load_plan("norton-43"))
    with pytest.raises(ValueError, match="cannot compress"):
        compress(model, load_plan("norton-43"))


def test_torchvisions_resnet_is_taken():
    compressed, _ = compress(resnet50(num_classes=5), load_plan("norton-77"))
    assert compressed.eval()(IMAGE).shape == (2, 5)
