"""Closed-form refits, against the networks whose weights they should find again and against least squares."""

import copy

import numpy as np
import pytest
import torch
from detectors import tiny_classifier, tiny_detector
from torch import nn

from norton_det.compression.least_squares import RIDGE
from norton_det.compression.refit import refit_block, refit_laterals
from norton_det.compression.residual import take_apart
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.channels import read_body


def generator():
    return torch.Generator().manual_seed(0)


def apart(network, *names):
    body = read_body(network)
    return [take_apart(network, body, block) for block in body.blocks if block.name in names]


def error(found, wanted):
    return float((found - wanted).detach().square().sum() / wanted.detach().square().sum())


def batches_of(*maps):
    """Two batches of maps that student and teacher read alike."""
    return [([x[half] for x in maps], [x[half] for x in maps]) for half in (slice(0, 3), slice(3, None))]


@pytest.fixture
def networks():
    """A network with statistics and scales that are not the initial ones, and a copy to change."""
    torch.manual_seed(0)
    network = tiny_classifier("resnet50").eval()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.running_var):
            tensor.uniform_(0.5, 2)
        for tensor in (norm.bias.data, norm.running_mean):
            tensor.uniform_(-1, 1)
    return network, copy.deepcopy(network)


@pytest.mark.parametrize("name", ["layer2.0", "layer2.1"])
def test_what_a_block_adds_up_is_found_again(networks, name):
    """Of a block with a shortcut of its own and of one without."""
    dense, changed = networks
    (teacher,), (student,) = apart(dense, name), apart(changed, name)
    for pair in (student.pairs[-1], student.shortcut):
        if not isinstance(pair, nn.Identity):
            nn.init.zeros_(pair[0].weight)
            nn.init.zeros_(pair[1].bias)
    x = torch.rand(6, student.pairs[0][0].in_channels, 24, 24)
    wanted = teacher.sum(x)
    before = error(student.sum(x), wanted)
    refit_block(student, [teacher], range(wanted.shape[1]), batches_of(x), generator())
    assert error(student.sum(x), wanted) < 0.02 * before


def test_the_change_is_that_of_a_ridge_regression_at_the_kept_channels(networks):
    dense, changed = networks
    (teacher,), (student,) = apart(dense, "layer2.1"), apart(changed, "layer2.1")
    student.pairs[0][0].weight.data.mul_(torch.rand_like(student.pairs[0][0].weight))
    x, kept = torch.rand(6, student.pairs[0][0].in_channels, 24, 24), [5, 0, 7]
    student.pairs[-1][0].weight = nn.Parameter(student.pairs[-1][0].weight[kept])
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(student.pairs[-1][1], name)
        setattr(student.pairs[-1][1], name, type(tensor)(tensor.detach()[kept]))
    rows = student.inside(x).detach().permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    lacks = (teacher.sum(x)[:, kept] - student.pairs[-1](student.inside(x)) - x[:, : len(kept)]).detach()
    lacks = lacks.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    centred = rows - rows.mean(axis=0)
    gram = centred.T @ centred
    ridge = RIDGE * gram.diagonal().mean() * np.eye(len(gram))
    change = np.linalg.solve(gram + ridge, centred.T @ (lacks - lacks.mean(axis=0)))
    expected = student.pairs[-1](student.inside(x)).permute(0, 2, 3, 1).flatten(0, 2).detach().double().numpy()
    expected = expected + lacks.mean(axis=0) + centred @ change

    class OfFewerChannels(nn.Identity):
        def forward(self, x):
            return x[:, : len(kept)]

    student.__dict__["shortcut"] = OfFewerChannels()
    refit_block(student, [teacher], kept, batches_of(x), generator())
    found = student.pairs[-1](student.inside(x)).permute(0, 2, 3, 1).flatten(0, 2)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-3, atol=1e-3)


def test_a_block_stands_for_the_ones_that_were_dropped_behind_it(networks):
    dense, changed = networks
    teachers, (student,) = apart(dense, "layer1.0", "layer1.1"), apart(changed, "layer1.0")
    x = torch.rand(6, student.pairs[0][0].in_channels, 24, 24)
    wanted = teachers[1].sum(teachers[0](x))
    before = error(student.sum(x), wanted)
    refit_block(student, teachers, range(wanted.shape[1]), batches_of(x), generator())
    assert error(student.sum(x), wanted) < 0.7 * before


def test_a_cp_convolution_keeps_its_factors_and_gets_a_constant():
    torch.manual_seed(0)
    dense = tiny_classifier("resnet18").eval()
    changed = copy.deepcopy(dense)
    changed.layer1[1].conv2 = CPConv2d.from_conv(changed.layer1[1].conv2, 1)
    factors = changed.layer1[1].conv2.channel.clone()
    (teacher,), (student,) = apart(dense, "layer1.1"), apart(changed, "layer1.1")
    x = torch.rand(6, student.pairs[0][0].in_channels, 16, 16)
    wanted = teacher.sum(x)
    refit_block(student, [teacher], range(wanted.shape[1]), batches_of(x), generator())
    torch.testing.assert_close(student.sum(x).mean((0, 2, 3)), wanted.mean((0, 2, 3)), rtol=0, atol=1e-4)
    assert torch.equal(changed.layer1[1].conv2.channel, factors)


@pytest.mark.parametrize("kind", ["faster_rcnn", "faster_rcnn_v2"])
def test_a_pyramid_reads_again_what_its_stages_hold(kind):
    """The stages' maps are mixed by an invertible matrix: the laterals undo it. v2 has BatchNorm behind them."""
    torch.manual_seed(0)
    teacher = tiny_detector(kind).eval().backbone.fpn
    student = copy.deepcopy(teacher)
    widths = [lateral[0].in_channels for lateral in teacher.inner_blocks]
    stages = [torch.randn(6, width, 16 - 3 * place, 16 - 3 * place) for place, width in enumerate(widths)]
    mixed = [x + 0.5 * x.roll(1, dims=1) for x in stages]
    halves = (slice(0, 3), slice(3, None))
    refit_laterals(student, teacher, [([x[h] for x in mixed], [x[h] for x in stages]) for h in halves], generator())
    for place in (0, 1):
        wanted = teacher.inner_blocks[place](stages[place])
        assert error(teacher.inner_blocks[place](mixed[place]), wanted) > 0.1
        assert error(student.inner_blocks[place](mixed[place]), wanted) < 0.02
