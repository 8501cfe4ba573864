"""Peak memory against allocations whose size is known."""

import subprocess
import sys

import pytest
import torch

from norton_det.analysis import memory
from norton_det.analysis.memory import peak_memory

MEASURED = """
import gc, torch
from norton_det.analysis.memory import peak_memory

def told(call):
    print(peak_memory(call, torch.device("cpu")) / 2**20)

for mebibytes in (64, 64, 256, 256):  # the second time, what was freed must not be reused unseen
    told(lambda: torch.ones(mebibytes << 18).sum())
for _ in range(3):
    told(lambda: [torch.ones(1 << 18) for _ in range(100)])
gc.disable()
garbage = [torch.ones(64 << 18)]
garbage.append(garbage)
del garbage
told(lambda: (gc.collect(), torch.ones(128 << 18)))
"""


def test_the_peak_is_what_a_call_allocates_and_frees_whatever_was_freed_before():
    """In a process of its own: one that has run much keeps free memory that cannot be given back."""
    found = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    expected = [64, 64, 256, 256, 100, 100, 100, 128]
    assert [float(line) for line in found.stdout.split()] == pytest.approx(expected, rel=0.15)


def test_a_system_that_keeps_no_count_gives_0(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "none")
    assert peak_memory(lambda: torch.ones(1 << 18), torch.device("cpu")) == 0


def test_an_error_passes():
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 / 0, torch.device("cpu"))
