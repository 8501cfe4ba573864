import json
import math

import pytest
import torch
from torch import nn

from norton_det.engine.checkpoint import CheckpointFolder, save
from norton_det.engine.metrics import MetricsWriter
from norton_det.engine.optim import build_optimizer, build_schedule
from norton_det.engine.trainer import TrainingRun, restore, train


def make_run(folder, iterations=12, period=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = build_optimizer(model, "sgd", lr=0.05, momentum=0.9, weight_decay=0.01)
    return TrainingRun(
        model=model,
        losses=lambda model, batch: {"fit": (model(batch[0]) - batch[1]).square().mean()},
        optimizer=optimizer,
        schedule=build_schedule(optimizer, "cosine", iterations=iterations, warmup=2),
        iterations=iterations,
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        description=lambda: {"plan": None},
        checkpoint_period=period,
        log_period=3,
        clip_norm=1.0,
    )


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
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_lowers_the_loss(tmp_path):
    run_to_end(make_run(tmp_path, iterations=60), tmp_path)
    found = lines(tmp_path)
    assert [line["iteration"] for line in found] == list(range(3, 61, 3))
    assert found[-1]["loss"] < 0.5 * found[0]["loss"]
    assert {"lr", "loss", "fit", "seconds", "data_seconds"} <= set(found[0])


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    whole = make_run(tmp_path / "whole")
    run_to_end(whole, tmp_path / "whole")

    broken = make_run(tmp_path / "broken")

    def fails_at_ten():
        for step, batch in enumerate(batches(0), start=1):
            if step == 10:
                raise OSError("power cut")
            yield batch

    with pytest.raises(OSError, match="power cut"):
        run_to_end(broken, tmp_path / "broken", data=fails_at_ten())
    resumed = make_run(tmp_path / "broken")
    start = restore(resumed, resumed.checkpoints.load_newest())
    assert start == 8
    run_to_end(resumed, tmp_path / "broken", start)

    for name, expected in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], expected), name
    without_times = [
        [{k: v for k, v in line.items() if "seconds" not in k} for line in lines(tmp_path / which)]
        for which in ("whole", "broken")
    ]
    assert without_times[1][-1] == without_times[0][-1]
    assert [line["iteration"] for line in without_times[1]] == [3, 6, 9, 12]


def test_a_loss_that_is_not_finite_stops(tmp_path):
    run = make_run(tmp_path, period=1)
    poisoned = iter(
        [*(b for b, _ in zip(batches(0), range(2), strict=False)), (torch.full((4, 3), math.inf), torch.ones(4, 1))]
    )
    with pytest.raises(FloatingPointError, match="iteration 3"):
        run_to_end(run, tmp_path, data=poisoned)
    assert run.checkpoints.load_newest()["iteration"] == 2


def test_the_newest_checkpoints_are_kept(tmp_path):
    run = make_run(tmp_path, iterations=12, period=4)
    run_to_end(run, tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["iteration_0000008.pth", "iteration_0000012.pth"]


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(1, {"iteration": 1, "model": {"w": torch.ones(1000)}})
    folder.save(2, {"iteration": 2, "model": {"w": torch.ones(1000)}})
    newest = tmp_path / "iteration_0000002.pth"
    newest.write_bytes(newest.read_bytes()[:2000])
    assert folder.load_newest()["iteration"] == 1


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    save({"w": torch.ones(1)}, path)
    before = path.read_bytes()

    def full_disk(content, target):
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save({"w": torch.zeros(1)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
