import os
import resource
import signal
from contextlib import contextmanager

import pytest
import torch

from norton_det.engine.checkpoint import CheckpointFolder
from norton_det.files import save_tensors


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(1, {"iteration": 1, "model": {"w": torch.ones(1000)}})
    folder.save(2, {"iteration": 2, "model": {"w": torch.ones(1000)}})
    newest = tmp_path / "iteration_0000002.pth"
    newest.write_bytes(newest.read_bytes()[:2000])
    assert folder.load_newest()["iteration"] == 1


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    save_tensors(path, {"w": torch.ones(1)})
    before = path.read_bytes()

    def full_disk(content, target):
        target.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_tensors(path, {"w": torch.zeros(1)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@contextmanager
def disk_for_10_kilobytes():
    """The kernel refuses to let files grow further."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full_in_earnest_is_one_error_that_names_the_file(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(1, {"iteration": 1})
    with (
        pytest.raises(OSError, match=r"^cannot write .*iteration_0000002.pth: File too large$"),
        disk_for_10_kilobytes(),
    ):
        folder.save(2, {"iteration": 2, "w": torch.ones(100_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["iteration_0000001.pth"]
    assert folder.load_newest() == {"iteration": 1}


def test_other_errors_of_the_writer_are_not_hidden(tmp_path):
    with pytest.raises(AttributeError):
        save_tensors(tmp_path / "weights.pth", {"w": lambda: None})


def test_the_newest_is_the_one_of_the_highest_iteration_also_in_a_copied_folder(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for iteration in (1, 2):
        folder.save(iteration, {"iteration": iteration})
    os.utime(tmp_path / "iteration_0000001.pth")  # as copying in whatever order does
    assert folder.load_newest() == {"iteration": 2}
    folder.save(3, {"iteration": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iteration_0000002.pth", "iteration_0000003.pth"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".123-iteration_0000007.pth").write_bytes(b"half")
    folder = CheckpointFolder(tmp_path)
    assert folder.load_newest() is None
    folder.save(8, {})
    assert [path.name for path in tmp_path.iterdir()] == ["iteration_0000008.pth"]
