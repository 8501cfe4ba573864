"""Peak memory against an allocation whose size is known."""

import time

import pytest
import torch

from norton_det.analysis.memory import peak_memory


@pytest.mark.parametrize("mebibytes", [64, 256])
def test_the_peak_is_what_a_call_allocates_and_frees(mebibytes):
    def call():
        held = torch.ones(mebibytes << 18)  # float32
        time.sleep(0.05)
        del held

    for _ in range(2):  # the second time, what was freed must not be reused unseen
        assert peak_memory(call, torch.device("cpu")) == pytest.approx(mebibytes << 20, rel=0.1)


def test_small_pieces_that_were_freed_count_again():
    def call():
        held = [torch.ones(1 << 18) for _ in range(100)]  # a MiB each
        time.sleep(0.05)
        del held

    for _ in range(3):
        assert peak_memory(call, torch.device("cpu")) == pytest.approx(100 << 20, rel=0.2)


def test_an_error_passes_and_leaves_no_watcher():
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 / 0, torch.device("cpu"))
