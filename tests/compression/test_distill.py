"""What a restored part is trained on, how far a step goes, and what of it is left as it was found."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from norton_det.compression import distill as module
from norton_det.compression.activations import ActivationFile
from norton_det.compression.distill import LEARNING_RATE, Distillation, distill
from norton_det.compression.optimizers import LEAST_SCALE


def write(path, maps):
    file = ActivationFile(path)
    file.append(maps)
    return file


def how(steps, step=4):
    return Distillation(
        "part", steps, read_size=4, batch_size=step, held=3, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture
def maps():
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 1


@pytest.fixture
def part():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)).eval()


@torch.no_grad()
def test_without_steps_the_statistics_alone_become_those_of_the_inputs(part, maps, tmp_path):
    """Doubled filters behind whose BatchNorm nobody has looked: with their own statistics they do what they did."""
    inside = part[0](maps)
    part[1].running_mean.copy_(inside.mean((0, 2, 3)))
    part[1].running_var.copy_(inside.var((0, 2, 3), correction=0))
    wanted = part(maps)
    part[0].weight.mul_(2), part[0].bias.mul_(2)
    part[0].requires_grad_(False)
    before, after = distill(part, [write(tmp_path / "x", maps)], [write(tmp_path / "y", wanted)], how(steps=0))
    assert before > 0.3 and after < 0.05
    torch.testing.assert_close(part[1].running_mean, 2 * inside.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    of_batches = torch.stack([batch.var((0, 2, 3)) for batch in inside.split(how(0).read_size)])
    torch.testing.assert_close(part[1].running_var, 4 * of_batches.mean(0), rtol=1e-4, atol=1e-5)
    assert part[1].momentum == 0.1 and not part[1].training
    assert [p.requires_grad for p in part.parameters()] == [False, False, True, True, True, True]


def test_a_part_that_training_makes_worse_stays_as_it_was_solved(tmp_path):
    # what is trained on says the opposite of what is held back
    torch.manual_seed(0)
    part, maps = nn.Conv2d(3, 4, 1), torch.randn(12, 3, 4, 4)
    solution = {"weight": torch.randn(4, 3, 1, 1), "bias": torch.randn(4)}
    wanted = F.conv2d(maps, **solution) * torch.where(torch.arange(12) < 3, 1.01, -9.0)[:, None, None, None]
    files = [write(tmp_path / "x", maps)], [write(tmp_path / "y", wanted)]
    before, after = distill(part, *files, how(steps=3), lambda: part.load_state_dict(solution))
    assert after == pytest.approx(0.01 / 1.01, rel=1e-3) and before > 0.5
    assert all(torch.equal(value, solution[name]) for name, value in part.state_dict().items())


def test_steps_end_with_their_time(part, maps, tmp_path):
    files = [write(tmp_path / "x", maps)], [write(tmp_path / "y", maps[:, :1, 1:7, 1:7])]
    untrained = copy.deepcopy(part)
    assert distill(part, *files, replace(how(steps=50), seconds=1e-9)) == distill(untrained, *files, how(steps=0))
    assert all(map(torch.equal, part.parameters(), untrained.parameters()))


def test_what_is_held_back_is_never_trained_on(part, maps, tmp_path, monkeypatch):
    read, trained = ActivationFile.read, set()

    def noted(file, images):
        if torch.is_grad_enabled():
            trained.update(images)
        return read(file, images)

    monkeypatch.setattr(ActivationFile, "read", noted)
    distill(part, [write(tmp_path / "x", maps)], [write(tmp_path / "y", maps[:, :1, 1:7, 1:7])], how(steps=12))
    assert trained == set(range(3, 12))


def test_a_step_goes_a_share_of_a_tensors_own_size(maps, tmp_path):
    part = nn.Conv2d(3, 4, 1)
    nn.init.normal_(part.weight, std=100)
    nn.init.zeros_(part.bias)
    before = copy.deepcopy(part)
    targets = [write(tmp_path / "y", maps[:, :1].expand(-1, 4, -1, -1).contiguous())]
    module._train(part, [write(tmp_path / "x", maps)], targets, range(12), how(steps=1))  # halfway down the cosine
    size = before.weight.square().mean().sqrt().item()
    for ours, theirs, step in ((part.weight, before.weight, size), (part.bias, before.bias, LEAST_SCALE)):
        assert (ours - theirs).abs().max().item() == pytest.approx(LEARNING_RATE * step / 2, rel=1e-3)


def test_outputs_of_any_scale_count_alike(tmp_path):
    """One number p, y = p x: an output of 1 that should be 2, and one of 10 that should be 9, which is nearer."""
    part = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(part.weight)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = part

        def forward(self, small, large):
            return self.part(small), self.part(large)

    inputs, targets = (
        [write(tmp_path / f"{name}{value}", torch.full((4, 1, 2, 2), value)) for value in values]
        for name, values in (("x", (1.0, 10.0)), ("y", (2.0, 9.0)))
    )
    module._train(Both(), inputs, targets, range(4), how(steps=1))
    assert part.weight.item() > 1
