"""The optimisers of recovery: orthogonal steps, rates in shares of a tensor's size, and what each of them trains."""

import copy

import pytest
import torch
from torch import nn

from norton_det.compression import optimizers as module
from norton_det.compression.optimizers import (
    Muon,
    is_matrix,
    lower_peaks,
    nearly_orthogonal,
    scaled_adam,
    scaled_muon,
    set_rates,
)
from norton_det.layers.cp_conv import CPConv2d


@pytest.mark.parametrize("shape", [(24, 24), (24, 60), (60, 24), (3, 20, 40)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_step_has_the_momentums_singular_vectors_and_equal_singular_values(shape, precision, monkeypatch):
    monkeypatch.setattr(module, "fastest_precision", lambda device: precision)
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), False)
    values = torch.linspace(1, 0.2, left.shape[-1])
    found = nearly_orthogonal(1e-3 * left * values @ right)
    inside = left.mT @ found @ right.mT
    diagonal = torch.diagonal(inside, dim1=-2, dim2=-1)
    assert found.dtype == torch.float32
    assert diagonal.min() > 0.65 and diagonal.max() < 1.25
    assert (inside - torch.diag_embed(diagonal)).abs().max() < 0.1


def test_matrices_are_weights_of_layers_and_channel_factors():
    layers = nn.ModuleList([
        nn.Conv2d(32, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.Linear(20, 40), nn.Linear(20, 4),
        nn.Linear(5000, 40), CPConv2d.from_conv(nn.Conv2d(24, 32, 3), 2), nn.BatchNorm2d(16),
    ])  # fmt: skip
    assert [name for name, p in layers.named_parameters() if is_matrix(p)] == ["0.weight", "2.weight", "5.channel"]


def test_the_size_of_a_step_is_a_share_of_the_tensors_own():
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(32)
    convolution.weight.data.mul_(7)
    net = nn.Sequential(norm, convolution)
    before = copy.deepcopy(net)
    optimizers = scaled_muon(list(net.parameters()), 0.02, 0.01)
    assert [type(each) for each in optimizers] == [Muon, torch.optim.Adam]
    set_rates(optimizers, 0.05)
    net(torch.randn(4, 32, 5, 5)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    pairs = zip(net.parameters(), before.parameters(), strict=True)
    moved = [(new - old).square().mean().sqrt().item() for new, old in pairs]
    scales = [p.square().mean().sqrt().item() for p in before.parameters()]
    assert moved[2] == pytest.approx(0.5 * 0.01 * scales[2], rel=0.2)
    assert moved[0] == pytest.approx(0.5 * 0.02 * scales[0], rel=0.01)
    assert moved[1] == pytest.approx(0.5 * 0.02 * module.LEAST_SCALE, rel=0.1)


def test_orthogonal_steps_find_what_adam_finds_slowly_where_directions_differ_in_size():
    torch.manual_seed(0)
    inputs = torch.randn(256, 32) * torch.logspace(0, -3, 32)
    target = inputs @ torch.randn(32, 32)

    def loss_after(make, steps=60):
        layer = nn.Linear(32, 32, bias=False)
        layer.weight.data.zero_()
        optimizers = make([layer.weight])
        for step in range(steps):
            set_rates(optimizers, (step + 0.5) / steps)
            layer.zero_grad()
            loss = (layer(inputs) - target).square().sum()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        return loss.item() / target.square().sum().item()

    by_muon = min(loss_after(lambda p, rate=rate: scaled_muon(p, rate, rate)) for rate in (3, 10, 30))
    by_adam = min(loss_after(lambda p, rate=rate: [scaled_adam(p, rate)]) for rate in (3, 10, 30))
    assert by_muon < by_adam < 1


def test_rates_rise_fall_and_are_lowered():
    optimizers = scaled_muon([nn.Parameter(torch.ones(16, 16)), nn.Parameter(torch.ones(3))], 0.4, 0.2)
    rates = []
    for share in (0.0, 0.05, 0.1, 0.5, 1.0):
        set_rates(optimizers, share)
        rates.append([group["lr"] for each in optimizers for group in each.param_groups])
    assert [first for first, _ in rates] == pytest.approx([0, 0.1, 0.195, 0.1, 0], abs=1e-3)
    lower_peaks(optimizers, 0.25)
    assert [group["peak"] for each in optimizers for group in each.param_groups] == pytest.approx([0.05, 0.1])
