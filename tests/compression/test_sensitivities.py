"""The refits and errors behind a plan search, one by one, against closed forms."""

from statistics import median_low

import numpy as np
import pytest
import torch
from detectors import tiny_classifier
from torch import nn
from torch.nn.functional import conv2d, relu

from norton_det.compression.least_squares import energy_error, least_squares
from norton_det.compression.plan import kept_channels
from norton_det.compression.refit import refit_convolution
from norton_det.compression.residual import take_apart
from norton_det.compression.saliency import group_scores, kept_filters
from norton_det.compression.search import body_sensitivities, part_sensitivities
from norton_det.compression.search.block_errors import block_errors, handed_on
from norton_det.compression.search.options import RATES, block_options
from norton_det.layers.cp_conv import CPConv2d
from norton_det.layers.low_rank_linear import LowRankLinear
from norton_det.models.channels import read_body

BODIES = ("resnet18", "resnet50")


@pytest.fixture(autouse=True)
def no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture(params=BODIES)
def network(request):
    return tiny_classifier(request.param)


def block_of(network, name):
    """A block's place in the body, and the block taken apart."""
    body = read_body(network)
    block = next(block for block in body.blocks if block.name == name)
    return body, block, take_apart(network, body, block)


def generator():
    return torch.Generator().manual_seed(0)


def maps_for(network, name, *shape):
    """Random maps (N, C, H, W) that a block can read."""
    return torch.rand(shape[0], network.get_submodule(name).conv1.in_channels, *shape[1:])


@pytest.mark.parametrize(("rows", "ridge"), [(8, 0.5), (4000, 0.01)])
def test_the_fewer_rows_the_less_they_are_trusted(rows, ridge):
    x, y = torch.randn(rows, 4) + 1, torch.randn(rows, 3)
    a, b = (m.double().numpy() - m.double().numpy().mean(axis=0) for m in (x, y))
    gram = a.T @ a
    expected = np.linalg.solve(gram + ridge * gram.diagonal().mean() * np.eye(4), a.T @ b).T
    weight, bias = least_squares(x, y)
    torch.testing.assert_close(weight, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight @ x.mean(0) + bias, y.mean(0))


@pytest.mark.parametrize("side", [1, 3])
def test_a_refitted_convolution_gives_its_targets_with_their_mean(side):
    """What differs is a 1x1 convolution: the centre tap of a 3x3 makes up for it."""
    conv, norm = nn.Conv2d(4, 3, side, padding=side // 2, bias=False), nn.BatchNorm2d(3).eval()
    maps = torch.randn(4, 4, 40, 40) + 1
    wanted = conv(maps) + conv2d(maps, torch.randn(3, 4, 1, 1)) + 7
    expected, positions = norm(wanted), torch.arange(1600)
    refit_convolution(conv, norm, maps, positions, wanted.permute(0, 2, 3, 1).flatten(0, 2))
    torch.testing.assert_close(norm(conv(maps)), expected, rtol=0, atol=0.15)


def test_a_refitted_cp_convolution_gets_back_its_scale_and_bias():
    conv, norm = CPConv2d(4, 3, 3, 2, padding=1, bias=False), nn.BatchNorm2d(3).eval()
    maps = torch.randn(4, 4, 20, 20)
    wanted = conv(maps) * torch.tensor([0.5, -2, 3])[:, None, None] + 7
    expected, factors = norm(wanted), conv.vertical.clone()
    refit_convolution(conv, norm, maps, torch.arange(400), wanted.permute(0, 2, 3, 1).flatten(0, 2))
    torch.testing.assert_close(norm(conv(maps)), expected, rtol=0, atol=1e-4)
    assert torch.equal(conv.vertical, factors)


@pytest.mark.parametrize("body", [*BODIES, "resnext50_32x4d"])
@pytest.mark.parametrize("name", ["layer1.0", "layer2.0", "layer2.1"])
def test_a_block_taken_apart_computes_what_the_block_does(body, name):
    network = tiny_classifier(body)
    x = maps_for(network, name, 2, 9, 9)
    torch.testing.assert_close(block_of(network, name)[2](x), network.get_submodule(name)(x))


def test_an_error_counts_for_what_is_handed_on_of_it_to_the_stages_ends(network, monkeypatch):
    body = read_body(network)
    names = [block.name for block in body.blocks]
    lasts = [body.last_block(stage).name for stage in body.stages]
    shares = dict(zip(names[1:], np.linspace(0.4, 1.2, len(names) - 1), strict=True))
    asked = iter(shares.values())

    def at_the_ends(block):
        energy, ends = 0.0, []
        for name in names:
            energy = shares.get(name, 0) * energy + (name == block)
            ends += [energy] * (name in lasts)
        return np.mean(ends)

    def handed_on(block, x, distorted, _):
        assert torch.equal(distorted, x + 1)
        return next(asked)

    monkeypatch.setattr(body_sensitivities, "block_errors", lambda block, x, *_: ([1.0, 2.0], block(x) + 1))
    monkeypatch.setattr(body_sensitivities, "handed_on", handed_on)
    monkeypatch.setattr(body_sensitivities, "_stage_errors", lambda *_: [3.0])
    images = torch.rand(2, 3, 64, 64)
    measured = body_sensitivities.measure_body(network, body, images, "pabs", torch.Generator())
    assert measured.blocks == {name: pytest.approx([at_the_ends(name), 2 * at_the_ends(name)]) for name in names}
    assert measured.stages == {last.split(".")[0]: pytest.approx([3 * at_the_ends(last)]) for last in lasts[:3]}


def test_a_block_hands_its_output_at_the_median_error_to_the_next(network):
    x = maps_for(network, "layer2.1", 6, 12, 12)
    body, block, residual = block_of(network, "layer2.1")
    errors, middle = block_errors(residual, x, block_options(body, block), "pabs", generator())
    assert energy_error(middle[3:], residual(x)[3:]) == pytest.approx(median_low(errors))
    assert 0 < median_low(errors) < max(errors)


def test_an_unchanged_rank_and_rate_lose_nothing_behind_the_refit(network):
    """Decomposing exactly, which nine components do, is as good as not decomposing."""
    _, _, residual = block_of(network, "layer2.1")
    x = maps_for(network, "layer2.1", 6, 12, 12)
    errors, _ = block_errors(residual, x, [(9, 0.0), (1, 0.0), (1, 0.5)], "pabs", generator())
    assert errors[0] < 0.01 * errors[1] < 0.01 * errors[2]


def test_what_the_refits_of_a_block_can_undo_is_not_handed_on(network):
    """The first convolution of a BasicBlock mixes neighbours, which its refit, a 1x1 convolution, undoes in part."""
    _, _, residual = block_of(network, "layer2.0")
    x = maps_for(network, "layer2.0", 8, 16, 16)
    mixed, noisy = x + 0.5 * x.roll(1, dims=1), x + 0.5 * torch.rand_like(x)
    undone, left = (handed_on(residual, x, y, generator()) for y in (mixed, noisy))
    assert undone < 0.5 * left < 0.5


def test_what_a_block_passes_by_is_handed_on_whole(network):
    _, _, residual = block_of(network, "layer2.1")
    nn.init.zeros_(residual.pairs[-1][1].weight)
    nn.init.zeros_(residual.pairs[-1][1].bias)
    nn.init.zeros_(residual.pairs[-2][1].weight)
    nn.init.zeros_(residual.pairs[-2][1].bias)
    x = maps_for(network, "layer2.1", 8, 16, 16) + 1
    distorted = x + torch.rand_like(x) - 0.5
    share = handed_on(residual, x, distorted, generator())
    assert share == pytest.approx(1, abs=0.01)


def test_the_last_convolution_makes_up_for_what_passes_the_block_by(network):
    _, _, residual = block_of(network, "layer2.1")
    x = maps_for(network, "layer2.1", 8, 16, 16) + 1
    maps = x
    for pair in residual.pairs[:-1]:
        maps = relu(pair(maps))
    change = conv2d(maps, torch.randn(x.shape[1], maps.shape[1], 1, 1))
    noise = torch.randn_like(x)
    made_up, left = (handed_on(residual, x, x + 0.2 * d / d.std(), generator()) for d in (change, noise))
    assert made_up < 0.5 * left


def test_errors_are_measured_on_the_second_half(network):
    body, _, residual = block_of(network, "layer2.1")
    x = maps_for(network, "layer2.1", 8, 16, 16)
    distorted = x.clone()
    distorted[4:] += torch.rand_like(x[4:])
    assert handed_on(residual, x, distorted, generator()) > 0.1
    x = maps_for(network, "layer1.0", 8, 16, 16)
    x[:4] = 0
    assert body_sensitivities._stage_errors(network, body, "layer1", x, generator())[-1] > 0.01


@pytest.mark.parametrize("stage", ["layer1", "layer2"])
def test_channels_that_are_gone_are_guessed_from_those_that_are_left(network, stage):
    body = read_body(network)
    x = maps_for(network, f"{stage}.0", 8, 16, 16)
    group = body.groups[stage]
    scores = group_scores([tuple(network.get_submodule(name) for name in pair) for pair in group.producers])
    kept = kept_filters(scores, kept_channels(group.width, 0.75))
    energy = network.get_submodule(stage)(x)[4:].square().sum(dim=(0, 2, 3))
    unguessed = 1 - float(energy[kept].sum() / energy.sum())
    errors = body_sensitivities._stage_errors(network, body, stage, x, generator())
    assert 0 < errors[RATES.index(0.75)] < 0.9 * unguessed


@pytest.mark.parametrize(
    ("body", "stage", "is_tied"),
    [("resnet18", "layer1", True), ("resnet18", "layer2", False), ("resnet50", "layer1", False)],
)
def test_where_the_stem_is_tied_to_the_stage_it_loses_the_same_channels(body, stage, is_tied, monkeypatch):
    network, pruned = tiny_classifier(body), []
    x = maps_for(network, f"{stage}.0", 4, 8, 8)

    def prune(maps, dense, scores, rate, _):
        assert len(scores) == maps.shape[1] == dense.shape[1]
        pruned.append((rate, maps is x and dense is x))
        return maps

    monkeypatch.setattr(body_sensitivities, "_pruned", prune)
    body_sensitivities._stage_errors(network, read_body(network), stage, x, generator())
    outputs = [(rate, False) for rate in RATES[1:] for _ in network.get_submodule(stage)]
    assert sorted(pruned) == sorted(outputs + [(rate, True) for rate in RATES[1:] if is_tied])


def test_a_layer_of_a_chain_reads_what_those_before_it_have_lost():
    """Else the error would be the second layer's own."""
    chain, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), torch.randn(400, 6)
    second, both = (part_sensitivities.part_error(chain, names, [x], 1) for names in (["1"], ["0", "1"]))
    assert both > 1.2 * second > 0.05


def test_norms_between_the_layers_of_a_part_are_kept():
    """The error is measured at the end of the whole sequence: here it is what remains behind a norm and a ReLU."""
    tower = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    nn.init.uniform_(tower[1].weight, 0.5, 2)
    x = torch.randn(8, 4, 9, 9)
    small = CPConv2d.from_conv(tower[0], 1)
    small = part_sensitivities._refitted(small, x, tower[0](x)[:4])
    found, wanted = tower[1:](small), tower(x)
    expected = energy_error(found[4:], wanted[4:])
    assert part_sensitivities.part_error(tower, ["0"], [x], 1) == pytest.approx(expected, rel=1e-4)


def test_a_pyramids_layers_err_level_by_level():
    """On inputs of their own: the first layer's map is the largest."""
    pyramid = nn.ModuleDict({"0": nn.Conv2d(3, 4, 3), "1": nn.Conv2d(5, 4, 3)})

    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = pyramid

        def forward(self, maps):
            levels = {name: self.blocks[name](x) for name, x in maps.items()}
            return levels | {"pool": levels["1"]}

    maps = {"0": torch.randn(4, 3, 12, 12), "1": torch.randn(4, 5, 6, 6)}
    each = []
    for name, x in maps.items():
        target = pyramid[name](x)
        found = part_sensitivities._refitted(CPConv2d.from_conv(pyramid[name], 1), x, target[:2])
        each.append(energy_error(found[2:], target[2:]))
    error = part_sensitivities.part_error(Pyramid(), ["blocks.0", "blocks.1"], [maps], 1)
    assert error == pytest.approx(np.mean(each), rel=1e-4)


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
