"""Machines that lack memory, disks, libraries: one line that says what to do, and exit code 2."""

import errno
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from norton_det import opencv
from norton_det.cli import analyze, train
from norton_det.cli.main import main

ANALYZE = ["analyze", "--config", "quickstart.yaml", "--input-size", "64", "64"]


def told(capsys, *words):
    """The line of a command that fails."""
    assert main(words) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


def lack_of_memory():
    """What torch and numpy really raise for more than any machine has, and what torch says of a GPU; whose memory it
    is, and how much was asked for."""
    found = []
    for allocate, amount in ((torch.empty, "4503599627370496 bytes"), (np.empty, "8.00 PiB")):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            allocate(1 << 50)
        found.append((raised.value, "this machine", amount))
    gpu = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
    found.append((torch.OutOfMemoryError(gpu), "the GPU", "2.00 GiB"))
    found.append((RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "the GPU", None))
    found.append((OSError(errno.ENOMEM, "Cannot allocate memory"), "this machine", None))
    return found


def test_a_lack_of_memory_says_where_how_much_and_what_to_lower(monkeypatch, capsys):
    for error, place, amount in lack_of_memory():

        def fail(args, error=error):
            raise error

        monkeypatch.setattr(train, "run", fail)
        line = told(capsys, "train", "--config", "quickstart.yaml")
        asked = f" ({amount} more were asked for)" if amount else ""
        expected = f"norton-det train: {place} has not enough memory{asked}: {train.LESS_MEMORY}"
        assert line == expected


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def fail(args):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(train, "run", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["train", "--config", "quickstart.yaml"])


def test_a_home_folder_is_meant_by_a_tilde_in_words_files_and_the_environment(tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "mine.yaml").write_text("base: ~/base.yaml\n")
    (home / "base.yaml").write_text("model: {weights: ~/w.pth}\noutput_dir: ~/run\n")
    assert main([*ANALYZE, "--json=~/a.json"]) == main([*ANALYZE, "--json", "~/b.json"]) == 0
    assert json.loads((home / "a.json").read_text()) == json.loads((home / "b.json").read_text())
    train_mine = ["train", "--config=~/mine.yaml"]
    assert f"'{home}/i'" in told(capsys, *train_mine, "data.test={images: ~/i, annotations: ~/a.json}")
    monkeypatch.setenv("NORTON_DATASETS", "~/data")
    assert f"{home}/data/coco" in told(capsys, *train_mine)
    assert told(capsys, "video", *train_mine[1:], "--output", "~/v.mp4").endswith(f"no weights file '{home}/w.pth'")
    assert not Path("~").exists()


def test_a_file_in_a_folders_place_is_named(capsys):
    Path("file").touch()
    for name in ("file/a.json", "file/below/a.json"):
        line = told(capsys, *ANALYZE, "--json", name)
        assert line.startswith("norton-det analyze: file") and line.endswith(
            ": a file stands where a folder is needed"
        )


def test_a_full_disk_names_the_file_or_the_temporary_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("norton_det.files.os.getpid", lambda: 7)
    Path(".7-a.json").symlink_to("/dev/full")
    assert told(capsys, *ANALYZE, "--json", "a.json").endswith("cannot write a.json: No space left on device")
    assert list(tmp_path.iterdir()) == []

    def fill(args):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"half")

    monkeypatch.setattr(analyze, "run", fill)
    monkeypatch.setenv("TMPDIR", "/scratch")
    assert "(TMPDIR: /scratch): No space left on device" in told(capsys, *ANALYZE)


def test_where_opencv_cannot_be_loaded_one_line_tells_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)  # as where libGL.so.1 is missing
    opencv._loaded.cache_clear()
    monkeypatch.setattr(analyze, "run", lambda args: opencv.resize)
    line = told(capsys, *ANALYZE)
    assert "opencv-python-headless" in line and "libgl1" in line


def test_a_window_that_opencv_does_not_have_is_told(monkeypatch, capsys):
    import cv2

    def headless(*words):
        raise cv2.error("The function is not implemented. Rebuild the library with Windows or GTK+ 2.x support.")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", headless)
    Path("a.png").touch()
    line = told(capsys, "image", "--weights", "w.pth", "--input", "a.png")
    assert "--output" in line and "opencv-python-headless" in line
