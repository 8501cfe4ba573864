"""Peak memory against an allocation whose size is known."""

import gc

import pytest
import torch

from norton_det.analysis import memory
from norton_det.analysis.memory import peak_memory


@pytest.mark.parametrize("mebibytes", [64, 256])
def test_the_peak_is_what_a_call_allocates_and_frees(mebibytes):
    def call():
        held = torch.ones(mebibytes << 18)  # float32
        del held

    for _ in range(2):  # the second time, what was freed must not be reused unseen
        assert peak_memory(call, torch.device("cpu")) == pytest.approx(mebibytes << 20, rel=0.1)


def test_small_pieces_that_were_freed_count_again():
    def call():
        held = [torch.ones(1 << 18) for _ in range(100)]  # a MiB each
        del held

    for _ in range(3):
        assert peak_memory(call, torch.device("cpu")) == pytest.approx(100 << 20, rel=0.2)


def test_garbage_from_before_is_not_counted_against_the_call():
    garbage = [torch.ones(1 << 24)]  # 64 MiB
    garbage.append(garbage)
    del garbage

    def call():
        gc.collect()
        held = torch.ones(1 << 25)
        del held

    assert peak_memory(call, torch.device("cpu")) == pytest.approx(128 << 20, rel=0.1)


def test_a_system_that_keeps_no_count_gives_0(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "none")
    assert peak_memory(lambda: torch.ones(1 << 20), torch.device("cpu")) == 0


def test_an_error_passes():
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 / 0, torch.device("cpu"))
