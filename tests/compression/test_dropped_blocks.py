"""Blocks that a plan leaves out whole: in compression, files, recovery, the dense network beside, and the search."""

import pytest
import torch
from detectors import frames, tiny_classifier, tiny_detector

from norton_det.compression.building import build_network, uncompressed
from norton_det.compression.compress import compress
from norton_det.compression.plan import CompressionPlan, load_plan
from norton_det.compression.recover import recover
from norton_det.compression.search.body_sensitivities import Sensitivities
from norton_det.compression.search.budget import Budget, Scope
from norton_det.compression.search.options import DROPPED, RATES, block_options, pruned_stages
from norton_det.compression.search.plan_search import best_plan, measure_sensitivities
from norton_det.models.channels import read_body
from norton_det.models.persistence import detector_from_weights, save_weights
from norton_det.models.structure import named_structure
from norton_det.models.weights import read_weights

DROPS = ("layer1.2", "layer3.2", "layer3.5")
PLAN = CompressionPlan(
    {"layer3.1.conv2": 1, "layer3.3.conv2": 2, "layer3.2.conv2": 3},
    {"layer3.4.conv1": 0.5, "layer3.5.conv1": 0.75, "layer1": 0.25},
    dropped=DROPS,
)


@pytest.fixture(scope="module")
def dense():
    return tiny_detector("faster_rcnn")


def test_what_is_left_computes_what_the_dense_blocks_would(dense):
    dropped, report = compress(dense, CompressionPlan(dropped=DROPS))
    body = dense.backbone.body
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        y = body.maxpool(body.relu(body.bn1(body.conv1(x))))
        for stage in ("layer1", "layer2", "layer3"):
            for place, block in enumerate(getattr(body, stage)):
                y = y if f"{stage}.{place}" in DROPS else block(y)
        torch.testing.assert_close(dropped.backbone.body(x)["2"], y)
    gone = [row for row in report.layers if not row.compressed_parameters]
    assert {row.name.rpartition(".")[0] for row in gone} == set(DROPS)
    assert all(set(row.compressed_shape) == {0} for row in gone) and len(gone) == 9
    assert sum(row.parameters - row.compressed_parameters for row in report.layers) == sum(
        p.numel() for name in DROPS for p in body.get_submodule(name).parameters() if p.ndim == 4
    )


def test_ranks_and_rates_keep_the_dense_networks_names(dense):
    compressed, report = compress(dense, PLAN)
    body = compressed.backbone.body
    assert [len(getattr(body, f"layer{i}")) for i in (1, 2, 3, 4)] == [2, 4, 4, 3]
    rows = {row.name: row for row in report.layers}
    assert (rows["layer3.1.conv2"].rank, rows["layer3.3.conv2"].rank) == (1, 2)
    assert (body.layer3[1].conv2.rank, body.layer3[2].conv2.rank) == (1, 2)
    assert body.layer3[3].conv1.out_channels == len(report.kept["layer3.4.conv1"]) == 16
    assert rows["layer3.4.conv1"].compressed_shape[0] == 16
    assert "layer3.5.conv1" not in report.kept


def test_a_file_and_a_network_of_the_plan_alone_have_the_same_shapes(dense, tmp_path):
    compressed, _ = compress(dense, PLAN)
    save_weights(tmp_path / "small.pth", compressed)
    weights = read_weights(tmp_path / "small.pth")
    loaded = detector_from_weights(weights)
    built = build_network(named_structure("faster_rcnn", "resnet50", 3, channels=64, box=32), PLAN.to_dict(), 0.125)
    with torch.no_grad():
        expected, found = (model.eval()(frames(1))[0]["boxes"] for model in (compressed, loaded))
    assert torch.equal(expected, found) and weights.is_compressed
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (compressed, built)]
    assert shapes[0] == shapes[1]
    assert load_plan(loaded.origin.plan, read_body(dense)) == load_plan(PLAN, read_body(dense))
    whole = uncompressed(loaded)
    assert {n: v.shape for n, v in whole.state_dict().items()} == {n: v.shape for n, v in dense.state_dict().items()}


def test_the_block_before_takes_over_in_recovery(dense):
    images = frames(5)
    compressed, report = compress(dense, PLAN)
    _, parts = recover(compressed, dense, images, report.kept, steps=5)
    assert [part.name for part in parts if part.name.startswith("layer3")] == [f"layer3.{i}" for i in range(4)]
    assert all(part.after <= part.before for part in parts)
    # the last block of layer3 now stands for layer3.4 and layer3.5: its error is that of the stage's output
    none, report = compress(dense, CompressionPlan(dropped=("layer3.5",)))
    _, parts = recover(none, dense, images, report.kept, steps=0)
    before = {part.name: part.before for part in parts}
    assert before["layer3.3"] < 1e-6 < 1e-3 < before["layer3.4"]


def test_search_drops_what_costs_nothing(dense):
    body = read_body(dense)
    errors = {}
    for block in body.blocks:
        options = block_options(body, block)
        assert (DROPPED in options) == (not block.name.endswith(".0"))
        errors[block.name] = [0.0 if option == DROPPED and block.name in DROPS else 1.0 for option in options]
        errors[block.name][0] = 0.0
    stages = {stage: [0.0, *[9.0] * (len(RATES) - 1)] for stage in pruned_stages(body)}
    scope = Scope(dense, False, (64, 64))
    share = scope.cost(CompressionPlan(dropped=DROPS), "macs") / scope.cost(CompressionPlan(), "macs")
    plan, report = best_plan(dense, Sensitivities(errors, stages), Budget("macs", share + 0.001, (64, 64)))
    assert plan == CompressionPlan(dropped=DROPS) and report.predicted_error == 0


def test_a_block_that_does_nothing_is_measured_as_free():
    network = tiny_classifier()
    with torch.no_grad():
        network.layer2[2].bn3.weight.zero_()
        network.layer2[2].bn3.bias.zero_()
    errors = measure_sensitivities(network, frames(4, 224, 224))
    body = read_body(network)
    dropped = {
        block.name: errors.blocks[block.name][block_options(body, block).index(DROPPED)]
        for block in body.blocks
        if not block.name.endswith(".0")
    }
    others = [error for name, error in dropped.items() if name != "layer2.2"]
    assert dropped["layer2.2"] < 1e-6 and dropped["layer2.2"] < min(others) / 10


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"dropped": ["layer3.0"]}, "layer3.0 cannot be dropped"),
        ({"dropped": ["layer3.7"]}, "'layer3.7' is no block; did you mean"),
        ({"dropped": "layer3.1"}, "dropped must be a list"),
        ({"dropped": [3]}, "3 is no block"),
    ],
)
def test_what_cannot_be_dropped_is_told(plan, message, dense):
    with pytest.raises(ValueError, match=message):
        load_plan(plan, read_body(dense))
