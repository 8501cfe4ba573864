"""The second phase of recovery: what a step sees, how long it lasts, what is kept, and that it goes on."""

import copy
import math

import pytest
import torch
from detectors import frames, tiny_detector

from norton_det.compression import end_to_end as module
from norton_det.compression.end_to_end import BATCH, Imitation, Length, augmented, train_end_to_end

HELD, TRAINED = range(2), range(2, 9)


@pytest.fixture(scope="module")
def teacher():
    return tiny_detector("faster_rcnn", "resnet18")


def task(teacher, images=None, seed=0):
    student = copy.deepcopy(teacher)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return Imitation(student, teacher, images or frames(9), HELD, TRAINED, seed)


def train(how, steps=10, state=(), save=lambda state: None, seconds=None):
    return train_end_to_end(how, Length(steps, seconds), dict(state), save)


def peaks(optimizers):
    return [group["peak"] for optimizer in optimizers for group in optimizer.param_groups]


def test_it_comes_nearer_and_leaves_the_teacher_and_the_flags_alone(teacher):
    how = task(teacher)
    how.student.backbone.body.conv1.weight.requires_grad_(False)
    state = copy.deepcopy(teacher.state_dict())
    before, after = train(how)
    assert after < 0.9 * before and after == pytest.approx(how.held_back_loss(), rel=1e-3)
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    assert [name for name, p in how.student.named_parameters() if not p.requires_grad] == [
        "backbone.body.conv1.weight"
    ]


def test_a_rate_that_does_harm_is_lowered(teacher, monkeypatch):
    monkeypatch.setattr(module, "LEARNING_RATE", 1.0)
    monkeypatch.setattr(module, "MATRIX_RATE", 1.0)
    how, lowered, lower_peaks = task(teacher), [], module.lower_peaks
    monkeypatch.setattr(module, "lower_peaks", lambda each, share: lower_peaks(each, share) or lowered.append(each))
    before, after = train(how, steps=20)
    assert after < before and lowered
    first = peaks(module.scaled_muon(list(task(teacher).student.parameters()), 1.0, 1.0))
    assert peaks(lowered[-1]) == pytest.approx([0.25 ** len(lowered) * peak for peak in first], rel=1e-4)


def test_what_does_worse_on_held_back_images_is_not_kept(teacher, monkeypatch):
    losses = iter(range(1, 10))
    monkeypatch.setattr(Imitation, "held_back_loss", lambda how: float(next(losses)))
    how = task(teacher)
    state = copy.deepcopy(how.student.state_dict())
    before, after = train(how)
    assert before == after
    assert all(torch.equal(value, state[name]) for name, value in how.student.state_dict().items())


def test_the_best_state_is_kept_not_the_last(teacher, monkeypatch):
    how, losses, states = task(teacher), iter([9.0, 5.0, 4.0, 6.0, 7.0, 8.0]), []

    def measured(self):
        states.append(copy.deepcopy(self.student.state_dict()))
        return next(losses)

    monkeypatch.setattr(Imitation, "held_back_loss", measured)
    assert train(how) == (9.0, 4.0)
    assert len(states) == 1 + module.LOOKS
    assert all(torch.equal(value, states[2][name]) for name, value in how.student.state_dict().items())


def test_stopped_it_goes_on_to_the_same_weights(teacher):
    whole, first, second = task(teacher), task(teacher), task(teacher)
    expected = train(whole)
    kept = []

    def stop(state):
        kept.append(copy.deepcopy(state))
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(first, save=stop)
    seen = []
    assert train(second, state=kept[-1], save=lambda state: seen.append(state["step"])) == expected
    assert seen == [6, 8, 10]
    assert all(torch.equal(v, second.student.state_dict()[name]) for name, v in whole.student.state_dict().items())


def test_time_ends_it_too(teacher, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    how, rates, set_rates = task(teacher), [], module.set_rates
    monkeypatch.setattr(module, "set_rates", lambda _, share: rates.append(share) or set_rates(_, share))
    before, after = train(how, steps=1000, seconds=40)
    assert 10 < len(rates) < 40 and rates == sorted(rates) and rates[-1] <= 1
    assert after < before


def test_no_time_is_no_change(teacher):
    how = task(teacher)
    state = copy.deepcopy(how.student.state_dict())
    before, after = train(how, seconds=-1.0)
    assert before == after
    assert all(torch.equal(value, state[name]) for name, value in how.student.state_dict().items())


def test_every_image_has_its_turn_and_the_held_back_ones_have_none(teacher):
    images = [torch.full((3, 8, 8), float(number)) for number in range(9)]
    how, other = task(teacher, images), task(teacher, images, seed=1)

    def numbers(how):
        return [int(image[0, 0, 0]) for step in range(7) for image in how.step_images(step)]

    seen = numbers(how)
    turns = [seen[start : start + len(TRAINED)] for start in range(0, 7 * BATCH, len(TRAINED))]
    assert all(sorted(turn) == list(TRAINED) for turn in turns) and turns[0] != turns[1]
    assert numbers(how) == seen != numbers(other)


def test_crops_have_the_scale_at_which_whole_images_are_seen(teacher):
    height, width = 80, 100
    rows = torch.linspace(0, 1, height)[:, None].expand(height, width)
    columns = torch.linspace(0, 1, width).expand(height, width)
    image = torch.stack([rows, columns, torch.zeros(height, width)])
    transform = teacher.transform
    whole = transform.min_size[-1] / height
    mirrored, zooms = set(), set()
    for number in range(20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "COLOUR", 0.0)
            batch = augmented(transform, [image, image], torch.Generator().manual_seed(number))
        mean, std = (torch.tensor(values)[:, None, None] for values in (transform.image_mean, transform.image_std))
        for pixels, (h, w) in zip(batch.tensors, batch.image_sizes, strict=True):
            shown = (pixels * std + mean)[:, :h, :w]
            pitch = ((shown[0, -3] - shown[0, 2]).mean() / (h - 5) * (height - 1)).item()
            across = ((shown[1, :, -3] - shown[1, :, 2]).mean() / (w - 5) * (width - 1)).item()
            zoom = 1 / pitch / whole
            assert math.exp(-module.ZOOM) - 0.05 < zoom < math.exp(module.ZOOM) + 0.05
            assert abs(1 / abs(across) / whole - zoom) < 0.05
            assert module.LEAST_CROP - 0.05 < h * pitch / height < 1.05
            mirrored.add(across < 0)
            zooms.add(round(zoom, 1))
    assert mirrored == {True, False} and len(zooms) > 2


def test_colours_change_and_the_generator_decides(teacher):
    draws = [
        augmented(teacher.transform, frames(2), torch.Generator().manual_seed(number)).tensors for number in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert draws[2].shape != draws[0].shape or not torch.allclose(draws[2], draws[0])
