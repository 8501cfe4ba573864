import json
import math
import os
import signal
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from norton_det.engine.averaging import WeightAverage
from norton_det.engine.checkpoint import CheckpointFolder
from norton_det.engine.metrics import MetricsWriter
from norton_det.engine.optim import build_optimizer, build_schedule
from norton_det.engine.trainer import TrainingRun, clip_gradients, restore, resume, train


def make_run(folder, iterations=12, period=4, **changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = build_optimizer(model, "sgd", lr=0.05, momentum=0.9, weight_decay=0.01)
    run = TrainingRun(
        model=model,
        losses=lambda model, batch: {"fit": (model(batch[0]) - batch[1]).square().mean()},
        optimizer=optimizer,
        schedule=build_schedule("cosine", lr=0.05, iterations=iterations, warmup=2),
        iterations=iterations,
        images_per_step=16,
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        description=lambda: {"plan": None},
        checkpoint_period=period,
        log_period=3,
        clip_norm=1.0,
    )
    return replace(run, **changes)


def with_average(run):
    return replace(run, average=WeightAverage(run.model, 0.9))


def with_float16(run):
    def losses(model, batch):
        with torch.autocast("cpu", torch.float16):
            fit = model(batch[0])
        return {"fit": (fit.float() - batch[1]).square().mean()}

    return replace(run, losses=losses, scaler=GradScaler("cpu", init_scale=2.0**24, growth_interval=3))


def interrupted(source, step, number):
    """A signal arrives while a step's batch is read."""
    for count, batch in enumerate(source, start=1):
        if count == step:
            os.kill(os.getpid(), number)
        yield batch


def batches(start):
    step = start
    while True:
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        yield x, x.sum(dim=1, keepdim=True)
        step += 1


def run_to_end(run, folder, start=0, data=None):
    with MetricsWriter(folder / "metrics.jsonl", run.iterations, start) as metrics:
        train(run, data or batches(start), metrics, start)


def lines(folder):
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_training_lowers_the_loss(tmp_path):
    run_to_end(make_run(tmp_path, iterations=60), tmp_path)
    found = lines(tmp_path)
    assert [line["iteration"] for line in found] == list(range(3, 61, 3))
    assert found[-1]["loss"] < 0.5 * found[0]["loss"]
    assert {"lr", "loss", "fit", "gradient_norm", "seconds", "data_seconds", "images_per_second"} <= set(found[0])
    assert found[0]["images_per_second"] == pytest.approx(16 / found[0]["seconds"])


def test_training_is_in_training_mode(tmp_path):
    run = make_run(tmp_path, iterations=1)
    run.model.eval()
    run_to_end(run, tmp_path)
    assert run.model.training


@pytest.mark.parametrize(("limit", "expected"), [(0.5, 0.5), (10.0, 5.0), (None, 5.0)])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_a_gradient_is_cut_to_the_largest_norm_that_is_allowed(limit, expected, scale, tmp_path):
    scaler = GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    run = make_run(tmp_path, clip_norm=limit, scaler=scaler)
    direction = torch.tensor([3.0, 4.0, 0.0])
    run.scaler.scale((run.model[0].weight[0] * direction).sum()).backward()
    assert clip_gradients(run) == pytest.approx(5)
    assert run.model[0].weight.grad.norm().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("change", [lambda run: run, with_average, with_float16])
def test_a_resumed_run_ends_with_the_same_bits(change, tmp_path):
    whole = change(make_run(tmp_path / "whole"))
    run_to_end(whole, tmp_path / "whole")

    broken = change(make_run(tmp_path / "broken"))

    def fails_at_ten():
        for step, batch in enumerate(batches(0), start=1):
            if step == 10:
                raise OSError("power cut")
            yield batch

    with pytest.raises(OSError, match="power cut"):
        run_to_end(broken, tmp_path / "broken", data=fails_at_ten())
    resumed = change(make_run(tmp_path / "broken"))
    start = restore(resumed, resumed.checkpoints.load_newest())
    assert start == 8
    run_to_end(resumed, tmp_path / "broken", start)

    assert same_weights(resumed.model, whole.model)
    assert same_weights(resumed.result, whole.result)
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    without_times = [
        [{k: v for k, v in line.items() if "second" not in k} for line in lines(tmp_path / which)]
        for which in ("whole", "broken")
    ]
    assert without_times[1][-1] == without_times[0][-1]
    assert [line["iteration"] for line in without_times[1]] == [3, 6, 9, 12]


def test_accumulated_batches_are_one_step(tmp_path):
    runs = []
    for passes in (1, 4):
        run = make_run(tmp_path / str(passes), accumulation=passes, clip_norm=None)
        run.model[1].p = 0.0  # what is dropped depends on the batch
        source = batches(0)
        if passes > 1:
            source = (part for x, y in source for part in zip(x.chunk(passes), y.chunk(passes), strict=True))
        run_to_end(run, tmp_path / str(passes), data=source)
        runs.append(run)
    whole, parts = ([p.detach() for p in run.model.parameters()] for run in runs)
    torch.testing.assert_close(parts, whole)
    assert lines(tmp_path / "4")[-1]["loss"] == pytest.approx(lines(tmp_path / "1")[-1]["loss"], rel=1e-4)


def test_what_the_model_draws_depends_on_seed_iteration_and_batch(tmp_path):
    drawn = []

    def losses(model, batch):
        drawn.append(torch.rand(()).item())
        return {"fit": model(batch[0]).square().mean()}

    for seed in (1, 2):
        run_to_end(make_run(tmp_path, iterations=3, losses=losses, accumulation=2, seed=seed), tmp_path)
    assert len(set(drawn)) == 12
    run_to_end(make_run(tmp_path, iterations=3, losses=losses, accumulation=2, seed=1), tmp_path)
    assert drawn[12:] == drawn[:6]


def test_averaged_weights_follow_their_formula(tmp_path):
    run = with_average(make_run(tmp_path, iterations=3, period=1))
    run.checkpoints.keep = 3
    expected = {name: value.clone() for name, value in run.model.state_dict().items()}
    run_to_end(run, tmp_path)
    for iteration in (1, 2, 3):
        state = torch.load(tmp_path / f"checkpoints/iteration_{iteration:07d}.pth", weights_only=True)
        decay = min(0.9, (1 + iteration) / (10 + iteration))
        for name, value in expected.items():
            expected[name] = decay * value + (1 - decay) * state["model"][name]
        torch.testing.assert_close(dict(state["average"]), expected)
    torch.testing.assert_close(dict(run.result.state_dict()), expected)


def test_statistics_are_averaged_and_counts_copied():
    trained = nn.BatchNorm1d(2)
    average = WeightAverage(trained, 0.5)
    trained(torch.randn(4, 2) + 3)
    average.update(trained, 100)
    torch.testing.assert_close(average.model.running_mean, trained.running_mean / 2)
    assert average.model.num_batches_tracked == 1


def test_without_a_checkpoint_a_run_begins_at_its_beginning(tmp_path):
    assert resume(make_run(tmp_path), None) == 0


def rates(folder):
    return [line["lr"] for line in lines(folder)]


def test_a_resumed_run_takes_its_rate_and_options_from_what_is_configured_now(tmp_path):
    run_to_end(make_run(tmp_path, iterations=6, log_period=1), tmp_path)
    run = make_run(tmp_path, iterations=12, log_period=1)
    for group in run.optimizer.param_groups:
        group["momentum"] = 0.5
    run = replace(run, schedule=build_schedule("cosine", lr=0.5, iterations=12, warmup=0))
    assert resume(run, run.checkpoints.load_newest()) == 6
    assert {group["momentum"] for group in run.optimizer.param_groups} == {0.5}
    assert any(state["momentum_buffer"].any() for state in run.optimizer.state.values())
    run_to_end(run, tmp_path, 6)
    assert rates(tmp_path)[6:] == pytest.approx([0.25 * (1 + math.cos(math.pi * i / 12)) for i in range(6, 12)])


def test_a_finished_run_that_is_asked_for_more_goes_on_at_the_rate_of_the_longer_run(tmp_path, caplog):
    caplog.set_level("INFO")
    run_to_end(make_run(tmp_path / "longer", iterations=12, log_period=1), tmp_path / "longer")
    run_to_end(make_run(tmp_path, iterations=6, log_period=1), tmp_path)
    same = make_run(tmp_path, iterations=6)
    assert resume(same, same.checkpoints.load_newest()) == 6
    assert "all 6 iterations are done: nothing is left to train" in caplog.messages
    more = make_run(tmp_path, iterations=12, log_period=1)
    run_to_end(more, tmp_path, resume(more, more.checkpoints.load_newest()))
    assert rates(tmp_path)[6:] == rates(tmp_path / "longer")[6:]
    fewer = make_run(tmp_path, iterations=5)
    with pytest.raises(ValueError, match=r"^--resume: 12 iterations are done, more than the 5 that are asked for"):
        resume(fewer, fewer.checkpoints.load_newest())


def test_averaging_can_begin_at_a_resume(tmp_path):
    first = make_run(tmp_path)
    run_to_end(first, tmp_path)
    second = with_average(make_run(tmp_path))
    assert resume(second, second.checkpoints.load_newest()) == 12
    assert same_weights(second.result, first.model)


def test_float16_leaves_out_steps_that_overflow(tmp_path):
    run = with_float16(make_run(tmp_path, iterations=40))
    run_to_end(run, tmp_path)
    assert run.scaler.get_scale() < 2.0**24
    assert lines(tmp_path)[-1]["loss"] < lines(tmp_path)[0]["loss"]


def overflowing(run):
    """Its gradients have no end however little the loss is scaled."""
    return replace(with_float16(run), losses=lambda model, batch: {"fit": (0 * model(batch[0])).abs().sqrt().mean()})


@pytest.mark.parametrize(
    ("iterations", "told"),
    [(8, "overflowed in every step up to iteration 8: nothing was trained"), (99, "at iteration 39 however little")],
)
def test_a_float16_run_that_makes_no_step_says_so_and_stops(iterations, told, tmp_path):
    run = overflowing(make_run(tmp_path, iterations=iterations, period=100))
    with pytest.raises(FloatingPointError, match=f"^float16: gradients .*{told}"):
        run_to_end(run, tmp_path)
    assert all(line["skipped_steps"] == 1 and "gradient_norm" not in line for line in lines(tmp_path))
    assert run.checkpoints.load_newest() is None


def named_batch(value, *ids):
    return torch.full((2, 3), value), torch.ones(2, 1), ids


def test_a_loss_that_is_not_finite_stops_and_names_the_images_of_its_batch(tmp_path):
    run = make_run(tmp_path, period=1, accumulation=2, image_ids=lambda batch: list(batch[2]))
    good = [named_batch(1.0, n, n + 1) for n in range(5)]
    with pytest.raises(FloatingPointError, match=r"at iteration 3, images 71, 72; see .*checkpoints"):
        run_to_end(run, tmp_path, data=iter([*good, named_batch(math.inf, 71, 72)]))
    assert run.checkpoints.load_newest()["iteration"] == 2


def test_a_gradient_that_is_not_finite_stops_as_well(tmp_path):
    def losses(model, batch):
        return {"fit": (0 * model(batch[0])).abs().sqrt().mean()}  # 0, with an infinite slope

    run = make_run(tmp_path, period=1, losses=losses, image_ids=lambda batch: list(batch[2]))
    with pytest.raises(FloatingPointError, match="gradient is not finite at iteration 1, images 5, 6"):
        run_to_end(run, tmp_path, data=iter([named_batch(1.0, 5, 6)]))
    assert run.checkpoints.load_newest() is None


@pytest.fixture
def attached():
    """A terminal that can be closed, be the tests started with nohup or not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("attached")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_saves_before_it_ends(number, code, tmp_path, caplog):
    caplog.set_level("INFO")
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    whole = make_run(tmp_path / "whole")
    run_to_end(whole, tmp_path / "whole")
    with pytest.raises(SystemExit) as ended:
        run_to_end(make_run(tmp_path), tmp_path, data=interrupted(batches(0), 6, number))
    assert ended.value.code == code
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    stops = [r.message for r in caplog.records if "--resume" in r.message]
    assert stops == [f"stopped by {number.name} at iteration 6: --resume goes on there"]
    resumed = make_run(tmp_path)
    assert resume(resumed, resumed.checkpoints.load_newest()) == 6
    run_to_end(resumed, tmp_path, 6)
    assert same_weights(resumed.model, whole.model)


def test_a_closed_terminal_does_not_end_what_was_started_with_nohup(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run_to_end(make_run(tmp_path, iterations=3), tmp_path, data=interrupted(batches(0), 2, signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [line["iteration"] for line in lines(tmp_path)] == [3]


def test_a_checkpoint_of_another_model_is_one_line(tmp_path):
    run_to_end(make_run(tmp_path), tmp_path)
    run = replace(make_run(tmp_path), model=nn.Sequential(nn.Linear(3, 9), nn.Dropout(0.5), nn.Linear(9, 1)))
    with pytest.raises(
        ValueError, match=r"^--resume: .*checkpoints: weights do not fit: 0\.weight \(8, 3\) for \(9, 3\)"
    ):
        resume(run, run.checkpoints.load_newest())


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
    events, made = [], []

    class Writer:
        def __init__(self, folder, purge_step):
            made.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            events.append((step, name, value))

        def close(self):
            made.append("closed")

    module = type(os)("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run_to_end(make_run(tmp_path), tmp_path)
    assert made == [(str(tmp_path / "tensorboard"), 1), "closed"]
    expected = [(line["iteration"], k, v) for line in lines(tmp_path) for k, v in line.items() if k != "iteration"]
    assert events == expected


def test_no_tensorboard_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run_to_end(make_run(tmp_path), tmp_path)
    assert not (tmp_path / "tensorboard").exists()


class Broken:
    """A package whose parts do not go together, as older setuptools, protobuf and numpy make TensorBoard one."""

    def __getattr__(self, name):
        raise TypeError("Descriptors cannot be created directly")


def test_a_tensorboard_that_cannot_be_imported_is_told_and_trained_without(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Broken())
    run_to_end(make_run(tmp_path, iterations=1), tmp_path)
    assert "TensorBoard cannot be imported, so it gets no numbers: Descriptors cannot be" in caplog.text


def test_the_newest_checkpoints_are_kept(tmp_path):
    run = make_run(tmp_path, iterations=12, period=4)
    run_to_end(run, tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["iteration_0000008.pth", "iteration_0000012.pth"]
