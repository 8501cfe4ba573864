"""The refits and errors behind a plan search, one by one, against closed forms."""

from statistics import median_low

import numpy as np
import pytest
import torch
from norton_det.models.resnet import BLOCK_NAMES, GROUPS, LAST_BLOCKS, ResNetSpec, build_resnet50
from torch import nn

from norton_det.compression.plan import kept_channels
from norton_det.compression.saliency import group_scores, kept_filters
from norton_det.compression.search import body_sensitivities, part_sensitivities
from norton_det.compression.search.least_squares import least_squares, refit_pointwise
from norton_det.layers.cp_conv import CPConv2d
from norton_det.layers.low_rank_linear import LowRankLinear


@pytest.fixture(autouse=True)
def no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def network():
    return build_resnet50(ResNetSpec.dense(0.125), num_classes=4).eval()


@pytest.mark.parametrize(("rows", "ridge"), [(8, 0.5), (4000, 0.01)])
def test_the_fewer_rows_the_less_they_are_trusted(rows, ridge):
    x, y = torch.randn(rows, 4) + 1, torch.randn(rows, 3)
    a, b = (m.double().numpy() - m.double().numpy().mean(axis=0) for m in (x, y))
    gram = a.T @ a
    expected = np.linalg.solve(gram + ridge * gram.diagonal().mean() * np.eye(4), a.T @ b).T
    weight, bias = least_squares(x, y)
    torch.testing.assert_close(weight, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight @ x.mean(0) + bias, y.mean(0))


def test_a_refitted_convolution_gives_its_targets_with_their_mean():
    conv, norm = nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3).eval()
    x = torch.randn(5000, 4) + 1
    wanted = x @ torch.randn(3, 4).T + 7
    expected = norm(wanted[:, :, None, None])
    refit_pointwise(conv, norm, x, wanted)
    torch.testing.assert_close(norm(conv(x[:, :, None, None])), expected, rtol=0, atol=0.15)


def test_an_error_counts_for_what_is_handed_on_of_it_to_the_stages_ends(network, monkeypatch):
    shares = dict(zip(BLOCK_NAMES[1:], np.linspace(0.4, 1.2, 15), strict=True))

    def at_the_ends(block):
        energy, ends = 0.0, []
        for name in BLOCK_NAMES:
            energy = shares.get(name, 0) * energy + (name == block)
            ends += [energy] * (name in LAST_BLOCKS)
        return np.mean(ends)

    blocks = {network.get_submodule(name): name for name in BLOCK_NAMES}

    def handed_on(block, x, distorted, _):
        assert torch.equal(distorted, x + 1)
        return shares[blocks[block]]

    monkeypatch.setattr(body_sensitivities, "_block_errors", lambda block, x, *_: ([1.0, 2.0], block(x) + 1))
    monkeypatch.setattr(body_sensitivities, "_handed_on", handed_on)
    monkeypatch.setattr(body_sensitivities, "_stage_errors", lambda *_: [3.0])
    measured = body_sensitivities.measure_body(network, torch.rand(2, 3, 64, 64), "pabs", torch.Generator())
    assert measured.blocks == {
        name: pytest.approx([at_the_ends(name), 2 * at_the_ends(name)]) for name in BLOCK_NAMES
    }
    assert measured.stages == {last.split(".")[0]: pytest.approx([3 * at_the_ends(last)]) for last in LAST_BLOCKS[:3]}


def test_a_block_hands_its_output_at_the_median_error_to_the_next(network):
    x, generator = torch.rand(6, 64, 12, 12), torch.Generator().manual_seed(0)
    block = network.layer2[1]
    errors, middle = body_sensitivities._block_errors(block, x, "pabs", generator)
    assert body_sensitivities.relative_error(middle[3:], block(x)[3:]) == pytest.approx(median_low(errors))
    assert 0 < median_low(errors) < max(errors)


def test_what_the_refits_of_a_block_can_undo_is_not_handed_on(network):
    block, generator = network.get_submodule("layer2.0"), torch.Generator().manual_seed(0)
    x = torch.rand(8, 32, 16, 16)
    mixed, noisy = x + 0.5 * x.roll(1, dims=1), x + 0.5 * torch.rand_like(x)
    undone, left = (body_sensitivities._handed_on(block, x, y, generator) for y in (mixed, noisy))
    assert undone < 0.1 * left < 0.1


def test_what_a_block_passes_by_is_handed_on_whole(network):
    block, generator = network.get_submodule("layer2.1"), torch.Generator().manual_seed(0)
    for layer in (block.conv2, block.bn2):
        nn.init.zeros_(layer.weight)
    nn.init.zeros_(block.bn3.bias)
    x = torch.rand(8, 64, 16, 16) + 1
    distorted = x + torch.rand_like(x) - 0.5
    assert body_sensitivities._handed_on(block, x, distorted, generator) == pytest.approx(1, abs=0.01)


def test_the_last_convolution_makes_up_for_what_passes_the_block_by(network):
    block, generator = network.get_submodule("layer2.1"), torch.Generator().manual_seed(0)
    x = torch.rand(8, 64, 16, 16) + 1
    maps = block.relu(block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x))))))
    change = nn.functional.conv2d(maps, torch.randn(64, 16, 1, 1))
    noise = torch.randn_like(x)
    made_up, left = (
        body_sensitivities._handed_on(block, x, x + 0.2 * d / d.std(), generator) for d in (change, noise)
    )
    assert made_up < 0.5 * left


def test_errors_are_measured_on_the_second_half(network):
    block, generator = network.get_submodule("layer2.1"), torch.Generator().manual_seed(0)
    x = torch.rand(8, 64, 16, 16)
    distorted = x.clone()
    distorted[4:] += torch.rand_like(x[4:])
    assert body_sensitivities._handed_on(block, x, distorted, generator) > 0.1
    x = torch.rand(8, 8, 16, 16)
    x[:4] = 0
    assert body_sensitivities._stage_errors(network, "layer1", x, generator)[-1] > 0.01


def test_channels_that_are_gone_are_guessed_from_those_that_are_left(network):
    x = torch.rand(8, 8, 16, 16)
    producers = [[network.get_submodule(name) for name in pair] for pair in GROUPS["layer1"].producers]
    kept = kept_filters(group_scores(producers), kept_channels(64, 0.75))
    energy = network.layer1(x)[4:].square().sum(dim=(0, 2, 3))
    unguessed = 1 - float(energy[kept].sum() / energy.sum())
    errors = body_sensitivities._stage_errors(network, "layer1", x, torch.Generator().manual_seed(0))
    assert 0 < errors[body_sensitivities.RATES.index(0.75)] < 0.9 * unguessed


def test_a_layer_of_a_chain_reads_what_those_before_it_have_lost():
    dense = [nn.Linear(6, 6), nn.Linear(6, 6)]
    small = [LowRankLinear.from_linear(layer, rank) for layer, rank in zip(dense, (1, 6), strict=True)]
    x = torch.randn(400, 6)
    chained = part_sensitivities._chain_error(dense, small, x, nn.Identity())
    first = part_sensitivities._chain_error(dense[:1], small[:1], x, nn.Identity())
    assert chained > 0.3 * first > 0.05


def test_a_factorised_layer_is_refitted_by_scale_and_bias_or_by_its_second_matrix():
    conv, linear = nn.Conv2d(3, 4, 3), nn.Linear(5, 6)
    maps, rows = torch.randn(8, 3, 9, 9), torch.randn(3000, 5)
    cp, low_rank = CPConv2d.from_conv(conv, 9), LowRankLinear.from_linear(linear, 5)
    cp.channel.mul_(torch.tensor([0.5, -2, 3, 1])[:, None])
    cp.bias.add_(1)
    low_rank.up.weight.mul_(0.5)
    low_rank.up.bias.add_(1)
    for layer, dense, x, tolerance in ((cp, conv, maps, 1e-3), (low_rank, linear, rows, 0.05)):
        target = dense(x)
        refitted = part_sensitivities._refitted(layer, x, target[: len(x) // 2])
        assert (refitted - target).norm() < tolerance * target.norm()
