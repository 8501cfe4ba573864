import math

import pytest
import torch
from torch import nn

from norton_det.engine.checkpoint import CheckpointFolder
from norton_det.engine.finetuning import ClassificationLosses, distillation_loss, finetuning_run

CPU = torch.device("cpu")


def softmax(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def distillation_by_hand(student, teacher, temperature):
    total = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softmax(ours, temperature), softmax(theirs, temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def networks():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Flatten(), nn.Linear(12, 5)) for _ in range(2)], (
        torch.randn(7, 3, 2, 2),
        torch.arange(7) % 5,
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_equals_its_formula(temperature):
    torch.manual_seed(1)
    student, teacher = torch.randn(2, 6, 4)
    expected = distillation_by_hand(student, teacher, temperature)
    assert distillation_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-5)
    assert distillation_loss(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-6)


def test_losses_are_smoothed_cross_entropy_and_the_teachers_share():
    (student, teacher), batch = networks()
    smoothing, weight = 0.1, 0.3
    losses = ClassificationLosses(CPU, torch.float32, smoothing, teacher, weight, 2.0)(student, batch)
    logits = student(batch[0])
    cross_entropy = 0.0
    for row, label in zip(logits.tolist(), batch[1].tolist(), strict=True):
        target = [smoothing / 5 + (1 - smoothing) * (c == label) for c in range(5)]
        cross_entropy -= sum(t * math.log(p) for t, p in zip(target, softmax(row, 1), strict=True)) / 7
    assert losses["classification"].item() == pytest.approx((1 - weight) * cross_entropy, rel=1e-5)
    expected = weight * distillation_by_hand(logits, teacher(batch[0]), 2.0)
    assert losses["distillation"].item() == pytest.approx(expected, rel=1e-5)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    alone = ClassificationLosses(CPU, label_smoothing=smoothing)(student, batch)
    assert list(alone) == ["classification"]
    assert alone["classification"].item() == pytest.approx(cross_entropy, rel=1e-5)


def test_mixed_precision_keeps_the_losses_in_float32():
    (student, teacher), batch = networks()
    exact, mixed = (
        ClassificationLosses(CPU, dtype, teacher=teacher)(student, batch) for dtype in (torch.float32, torch.bfloat16)
    )
    for name, value in mixed.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=0.05)
        assert value.item() != exact[name].item()


@pytest.mark.parametrize(
    ("name", "value"), [("label_smoothing", 1.5), ("distill_weight", -0.1), ("temperature", 0.0)]
)
def test_losses_refuse_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name} must .* got {value}"):
        ClassificationLosses(CPU, **{name: value})


def run(tmp_path, **changes):
    model = nn.Linear(1, 1)
    options = {
        "images_per_step": 8,
        "seed": 0,
        "epoch_length": 10,
        "epochs": 4,
        "max_iterations": None,
        "warmup_epochs": 1,
        "lr": 0.5,
    }
    more = {"weight_decay": 0, "checkpoints": CheckpointFolder(tmp_path), "checkpoint_period": 5, "description": dict}
    return finetuning_run(model, ClassificationLosses(CPU), **options | more | changes)


@pytest.mark.parametrize(("limit", "iterations", "warmup"), [(None, 40, 10), (8, 8, 2), (80, 80, 10)])
def test_the_schedule_rises_and_falls(tmp_path, limit, iterations, warmup):
    training = run(tmp_path, max_iterations=limit)
    assert training.iterations == iterations
    rates = [training.schedule(done) for done in range(iterations)]
    expected = [
        0.5 * 0.5 * (1 + math.cos(math.pi * i / iterations)) * min(1, 0.001 + 0.999 * i / warmup)
        for i in range(iterations)
    ]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("max_iterations", 0), ("checkpoint_period", 0), ("warmup_epochs", 5)]
)
def test_a_run_refuses_numbers_out_of_range(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} must .* got {value}"):
        run(tmp_path, **{name: value})
