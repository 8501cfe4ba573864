"""One run at a time in a folder, and what an earlier one left there."""

import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest
from processes import in_two_processes

from norton_det.engine.folder import KEPT, LOCK, put_aside, sole_run


def hold(folder, ready, end):
    with sole_run(folder / LOCK, "a"):
        ready.set()
        end.wait()


@pytest.fixture
def other(tmp_path):
    """Another process that has the folder until its `end` is set."""
    fork = multiprocessing.get_context("fork")
    ready, end = fork.Event(), fork.Event()
    process = fork.Process(target=hold, args=(tmp_path, ready, end))
    process.end = end
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_run_is_refused_and_told_whose_the_folder_is_until_that_ends(other, tmp_path, caplog):
    told = rf"^a is in use by process {other.pid} on {socket.gethostname()} since {time.strftime('%Y')}-.*: wait"
    with pytest.raises(ValueError, match=told), sole_run(tmp_path / LOCK, "a"):
        pytest.fail("two runs in one folder")
    other.end.set()
    other.join()
    with sole_run(tmp_path / LOCK, "a"):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert list(tmp_path.iterdir()) == [] and not caplog.messages


def test_the_place_of_a_killed_run_is_taken_and_that_is_told(other, tmp_path, caplog):
    other.kill()
    other.join()
    with sole_run(tmp_path / LOCK, "a"):
        pass
    [told] = caplog.messages
    assert told.startswith(f"a was in use by process {other.pid} on ") and told.endswith("this run takes its place")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [[], ["model_final.pth"]])
def test_folders_in_which_a_run_leaves_nothing_are_not_left(left, tmp_path):
    with sole_run(tmp_path / "new/run" / LOCK, "a"):
        for name in left:
            (tmp_path / "new/run" / name).touch()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == left
    assert (tmp_path / "new").exists() == bool(left)


def test_two_processes_are_one_run_and_are_refused_together(other, tmp_path):
    def enter(folder):
        try:
            with sole_run(folder / LOCK, "a"):
                return "in"
        except ValueError as error:
            return str(error)

    def both(rank):
        return [enter(tmp_path / "free"), enter(tmp_path)]

    answers = in_two_processes(both, tmp_path)
    assert answers[0] == answers[1]
    assert answers[0][0] == "in" and f"in use by process {other.pid} " in answers[0][1]


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match="output_dir: file: "),
        sole_run(tmp_path / "file" / LOCK, "output_dir: file"),
    ):
        pytest.fail("in a file")


def test_what_earlier_runs_left_is_kept_beside_one_another(tmp_path, caplog):
    for run in ("first", "second"):
        (tmp_path / "checkpoints").mkdir()
        for name in ("checkpoints/iteration_0000001.pth", "metrics.jsonl", "config.yaml", "model_final.pth"):
            (tmp_path / name).write_text(run)
        put_aside(tmp_path)
    for number, run in enumerate(("first", "second"), start=1):
        kept = tmp_path / f"earlier-{number}"
        left = ["checkpoints", "config.yaml", "metrics.jsonl", "model_final.pth"]
        assert sorted(path.name for path in kept.iterdir()) == left
        assert (kept / "checkpoints/iteration_0000001.pth").read_text() == run
        assert f"its files: {kept}" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier-1", "earlier-2"]
    caplog.clear()
    put_aside(tmp_path, KEPT)
    assert not caplog.messages and not Path(tmp_path / "earlier-3").exists()
