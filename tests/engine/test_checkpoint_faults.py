"""What happens to checkpoints when a process is killed, and what is made of damaged ones."""

import os
import random
import signal
import sys

import pytest
import torch

from norton_det.engine.checkpoint import CheckpointFolder
from norton_det.files import load_tensors, save_tensors

MOMENTS = 80
OLD, NEW = ({"iteration": n, "model": {"w": torch.full((3000,), float(n))}} for n in (1, 2))


def save_new(folder, last_event=None):
    """Save, and be killed at an event, a call or return of a function of Python's or C's; gives their number."""
    events = 0

    def count(*_):
        nonlocal events
        events += 1
        if events == last_event:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    try:
        CheckpointFolder(folder, keep=1).save(2, NEW)
    finally:
        sys.setprofile(None)
    return events


def test_a_process_killed_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    (tmp_path / "count").mkdir()
    save_new(tmp_path / "count")
    events = save_new(tmp_path / "count")
    found = []
    moments = sorted(random.Random(0).sample(range(1, events - 20), MOMENTS - 20))
    for moment in (*moments, *range(events - 20, events)):
        folder = tmp_path / str(moment)
        CheckpointFolder(folder).save(1, OLD)
        child = os.fork()
        if not child:
            save_new(folder, moment)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        for path in folder.glob("iteration_*.pth"):
            load_tensors(path)  # none is half-written
        content = CheckpointFolder(folder).load_newest()
        assert content["iteration"] in (1, 2)
        assert torch.equal(content["model"]["w"], (OLD, NEW)[content["iteration"] - 1]["model"]["w"])
        found.append(content["iteration"])
        CheckpointFolder(folder, keep=1).save(3, NEW)
        assert os.listdir(folder) == ["iteration_0000003.pth"]
    assert found == sorted(found) and {*found} == {1, 2}


@pytest.mark.parametrize("legacy", [False, True])
def test_any_flipped_bit_is_noticed_or_harmless(legacy, tmp_path):
    """Harmless are those of the padding between the parts of a zip file. A legacy file has no checksums: only what
    cannot be read is noticed there, and we write none."""
    path = tmp_path / "weights.pth"
    content = {"model": {"w": torch.arange(40.0)}, "name": "x"}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            found = load_tensors(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: not a weights file that can be read safely: ")
            refused += 1
        else:
            assert legacy or (torch.equal(found["model"]["w"], content["model"]["w"]) and found["name"] == "x")
    assert refused > len(whole) / 3 / 5


class Payload:
    """A pickle that would leave a file behind, were it ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((3000,), 2.0).numpy().tobytes()[:64]) + 5000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({**NEW, "payload": Payload(path.parent / "trace")}, path),
    ],
    ids=["flipped bit", "truncated", "empty", "payload"],
)
def test_the_one_before_a_damaged_checkpoint_is_taken(damage, tmp_path, caplog):
    folder = CheckpointFolder(tmp_path)
    folder.save(1, OLD)
    folder.save(2, NEW)
    damage(tmp_path / "iteration_0000002.pth")
    assert folder.load_newest()["iteration"] == 1
    assert "iteration_0000002.pth: not a weights file that can be read safely" in caplog.text
    assert not (tmp_path / "trace").exists()


def test_saved_tensors_are_read_back(tmp_path):
    save_tensors(tmp_path / "a.pth", NEW)
    assert torch.equal(load_tensors(tmp_path / "a.pth")["model"]["w"], NEW["model"]["w"])
