import math

import pytest
from torch import nn

from norton_det.engine.optim import build_optimizer, build_schedule, scaled_lr


def rates(kind, **options):
    schedule = build_schedule(kind, lr=1.0, **options)
    return [schedule(done) for done in range(options["iterations"])]


def test_multistep_divides_by_ten_at_its_milestones():
    found = rates("multistep", iterations=10, warmup=0, milestones=[0.4, 0.8])
    assert found == pytest.approx([1] * 4 + [0.1] * 4 + [0.01] * 2)


def test_cosine_ends_at_zero():
    found = rates("cosine", iterations=100, warmup=0)
    assert found[0] == 1
    assert found[50] == pytest.approx(0.5)
    assert found[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


def test_warm_up_rises_linearly():
    found = rates("multistep", iterations=10, warmup=4, milestones=[])
    assert found[:5] == pytest.approx([0.001, 0.25075, 0.5005, 0.75025, 1])


@pytest.mark.parametrize(("optimizer", "expected"), [("sgd", 0.01), ("adamw", 0.02 / math.sqrt(2))])
def test_rate_follows_the_batch(optimizer, expected):
    assert scaled_lr(0.02, optimizer, 8) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_vectors_are_not_decayed_and_frozen_ones_left_out(kind):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    decayed, plain = build_optimizer(model, kind, lr=0.1, momentum=0.9, weight_decay=0.5).param_groups
    assert [p.shape for p in decayed["params"]] == [model[0].weight.shape]
    assert decayed["weight_decay"] == 0.5
    assert plain["weight_decay"] == 0
    assert len(plain["params"]) == 3
