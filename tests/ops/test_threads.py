"""One thread while it lasts, and after it as many as before, whatever happened."""

import pytest
import torch

from norton_det.ops.threads import one_thread


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_block_runs_on_one_thread_and_gives_the_others_back():
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), one_thread():
        print(1 / 0)
    assert torch.get_num_threads() == 3


def test_a_function_does_so_at_every_call():
    count = one_thread()(torch.get_num_threads)
    assert [count(), count(), torch.get_num_threads()] == [1, 1, 3]
