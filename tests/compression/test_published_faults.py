"""The faults of the published pruning: that ours lacks them, and that benchmarks/published.py has them.

Ours is also tested elsewhere: right angles and saturation in ops/test_similarity.py, tied channels and BatchNorm in
test_compress.py, failed decompositions in ops/test_cp.py, pickles in models/test_weights.py, eval in
test_architecture.py.
"""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from detectors import tiny_classifier
from torch import nn

import norton_det
from norton_det.compression.compress import compress
from norton_det.compression.plan import CompressionPlan, load_plan
from norton_det.compression.saliency import group_scores, kept_filters
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.channels import read_body
from norton_det.ops.cp import decompose_filters
from norton_det.ops.factors import CPFactors
from norton_det.ops.similarity import greedy_selection, pabs_distances
from norton_det.visualization.draw import draw_predictions
from norton_det.visualization.sources import Video

ROOT = Path(__file__).parents[2]
IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
BODY = read_body(tiny_classifier(width=0.25))
KEEP_ALL = CompressionPlan(dict.fromkeys(BODY.spatial, 1), dict.fromkeys(BODY.groups, 0.0))
EIGHT = [33.0, 66.0, 58.0, 19.0, 57.0, 71.0, 4.0, 22.0]
"""Degrees between eight filters and an axis. 57 goes (beside 58), then 22 (19), 66 (71), 58 and 33."""


@pytest.fixture(scope="module")
def published():
    spec = importlib.util.spec_from_file_location("published", ROOT / "benchmarks" / "published.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network():
    """A small ResNet-50 whose BatchNorms are not those of a new one."""
    network = tiny_classifier(width=0.25)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.4, 0.9)
    return network.eval()


def layer_in_the_plane(degrees):
    """Eight filters whose channel vectors (norm 1) lie in one plane, their spatial vectors the same."""
    layer = CPConv2d(2, len(degrees), 3, rank=1, bias=False)
    radians = torch.tensor(degrees) * math.pi / 180
    layer.channel.data[0] = torch.stack([radians.cos(), radians.sin()], dim=1)
    layer.vertical.data[:], layer.horizontal.data[:] = 1, 1
    return layer


def differing(network, other):
    """Names of the tensors that two networks do not share."""
    theirs = other.state_dict()
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, theirs[name])}


def pairs(distances):
    """The distance of each pair, (K * (K-1) / 2,)."""
    return distances[tuple(torch.triu_indices(*distances.shape, offset=1))]


def test_orthogonal_filters_count_as_identical_in_the_published_code_only(published):
    basis = torch.eye(3)[:, :, None]  # (K, n, 1)
    factors = CPFactors(basis, basis, basis)
    assert (published.published_distances(factors) == 0).all()
    assert (pairs(pabs_distances(factors)) > 4).all()


def test_published_angles_are_ours_at_rank_one(published):
    """Below the right angle: this part of the published formula is sound."""
    generator = torch.Generator().manual_seed(0)
    factors = CPFactors(*(torch.rand(10, n, 1, generator=generator) + 0.1 for n in (12, 3, 3)))
    torch.testing.assert_close(published.published_distances(factors), pabs_distances(factors), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [2, 3])
def test_published_channel_angles_vanish_on_real_filters(published, real_filters, rank):
    factors = decompose_filters(real_filters["layer1.1.conv2.weight"], rank)
    assert (pairs(published.published_angles(factors.channel)) == 0).double().mean() > 0.99
    assert (pairs(pabs_distances(factors)) > 1e-3).all()


def test_the_filters_removed_last_are_the_ones_kept(published):
    layer = layer_in_the_plane(EIGHT)
    assert greedy_selection(pabs_distances(layer.factors)).tolist()[:5] == [4, 7, 1, 2, 0]
    assert kept_filters(group_scores([(layer, nn.BatchNorm2d(8))]), 5).tolist() == [0, 2, 3, 5, 6]
    assert published.published_kept(layer, 5).tolist() == [0, 1, 5, 6, 7]


def test_rate_zero_changes_nothing_in_ours_and_69_tensors_in_the_published_code(published, network):
    decomposed, _ = compress(network, CompressionPlan(KEEP_ALL.ranks))
    ours, _ = compress(network, KEEP_ALL)
    theirs = published.published_compress(network, KEEP_ALL)
    with torch.no_grad():
        expected = decomposed(IMAGE)
        assert torch.equal(ours(IMAGE), expected)
        assert not torch.allclose(theirs(IMAGE), expected, rtol=0.1)
    assert differing(ours, decomposed) == set()
    changed = differing(theirs, decomposed)
    assert len(changed) == 69
    assert {name.rsplit(".", 1)[0].rsplit(".")[-1] for name in changed} == {"conv1", "bn1", "bn2"}


def test_the_published_code_adds_unrelated_channels(published, network):
    plan = load_plan("norton-59", BODY)
    theirs = published.published_compress(network, plan)
    assert theirs(IMAGE).shape == network(IMAGE).shape
    block, width = network.layer1[0], theirs.layer1[0].conv3.out_channels
    added = [published.published_kept(conv, width) for conv in (block.conv3, block.downsample[0])]
    assert not torch.equal(*added)
    ours, report = compress(network, plan)
    for name, inputs in (("conv3", "layer1.0.conv2"), ("downsample.0", "stem")):
        expected = block.get_submodule(name).weight[report.kept["layer1"]][:, report.kept[inputs]]
        assert torch.equal(ours.layer1[0].get_submodule(name).weight, expected)


def test_the_published_shortcut_reads_the_channels_that_conv2_keeps(published, network):
    theirs = published.published_compress(network, load_plan("norton-59", BODY))
    block = network.layer2[0]
    decomposed, _ = compress(network, KEEP_ALL)
    inner = published.published_kept(decomposed.layer2[0].conv2, theirs.layer2[0].conv2.out_channels)
    outputs = published.published_kept(block.downsample[0], theirs.layer2[0].conv3.out_channels)
    expected = block.downsample[0].weight[outputs][:, inner]
    assert torch.equal(theirs.layer2[0].downsample[0].weight[:, : len(inner)], expected)


def test_the_method_imports_without_a_gpu():
    code = "import norton_det.compression.compress, torch; assert not torch.cuda.is_available()"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)


def test_weights_hold_tensors_and_plain_types_only(network, tmp_path):
    compressed, _ = compress(network, load_plan("norton-77", BODY))
    norton_det.save(compressed, tmp_path / "own.pth")
    assert torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "own.pth") == []


def test_a_video_is_read_as_rgb(tmp_path):
    red = torch.tensor([220, 30, 10], dtype=torch.uint8)[:, None, None].expand(3, 64, 96)
    writer = cv2.VideoWriter(str(tmp_path / "red.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    writer.write(red.flip(0).permute(1, 2, 0).contiguous().numpy())  # OpenCV takes BGR
    writer.release()
    (frame,) = Video(tmp_path / "red.avi")
    assert frame.shape == red.shape
    assert (frame.int() - red.int()).abs().max() < 12


@pytest.mark.parametrize("count", [0, 1, 2])
def test_any_number_of_detections_is_drawn(count):
    prediction = {
        "boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]).expand(count, 4),
        "labels": torch.ones(count, dtype=torch.long),
        "scores": torch.full((count,), 0.9),
    }
    black = torch.zeros(3, 64, 64, dtype=torch.uint8)
    assert bool(draw_predictions(black, prediction, ["__background__", "dog"]).any()) == (count > 0)
