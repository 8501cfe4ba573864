"""Several calls at a time give what one by one gives, in order, with few items in hand, and fail alike."""

import itertools
import threading
import time

import pytest
import torch

from norton_det.in_flight import MOST, in_order, most_at_once


@pytest.mark.parametrize("at_once", [1, 3])
def test_results_come_in_order_however_long_each_call_takes(at_once):
    def slow(number):
        time.sleep(0.02 if number % 3 == 0 else 0.0)
        return -number

    assert list(in_order(slow, range(12), at_once)) == [-number for number in range(12)]
    assert list(in_order(slow, [], at_once)) == []


def test_calls_run_at_the_same_time():
    everyone = threading.Barrier(3)  # is passed only by three together
    assert list(in_order(lambda number: everyone.wait(timeout=5) >= 0 and number, range(6), 3)) == list(range(6))


@pytest.mark.parametrize("at_once", [1, 2])
def test_few_items_are_taken_before_their_results_are_asked_for(at_once):
    taken = []
    results = in_order(str, (taken.append(number) or number for number in itertools.count()), at_once)
    for count in range(1, 6):
        assert next(results) == str(count - 1)
        assert count <= len(taken) < count + 2 * at_once
    results.close()


@pytest.mark.parametrize("at_once", [1, 3])
def test_an_error_comes_after_the_results_before_it(at_once):
    def call(number):
        if number == 4:
            raise ValueError("image 4 is damaged")
        return number

    results = in_order(call, range(100), at_once)
    assert list(itertools.islice(results, 4)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="image 4"):
        next(results)


@pytest.mark.parametrize("at_once", [1, 3])
def test_an_error_of_the_items_comes_after_the_results_before_it(at_once):
    def items():
        yield from range(4)
        raise OSError("the file ends here")

    results = in_order(str, items(), at_once)
    assert list(itertools.islice(results, 4)) == ["0", "1", "2", "3"]
    with pytest.raises(OSError, match="ends here"):
        next(results)


def test_ctrl_c_ends_all_threads():
    def items():
        yield from range(3)
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        list(in_order(str, items(), 2))
    assert threading.active_count() == before


@pytest.fixture
def five_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    yield
    torch.set_num_threads(before)


def test_the_threads_of_torch_are_divided_among_the_calls_and_given_back(five_threads):
    assert most_at_once() == min(5, MOST)
    results = in_order(lambda _: torch.get_num_threads(), range(6), 2)
    assert next(results) == 2
    assert set(results) == {2}
    assert torch.get_num_threads() == 5
    results = in_order(lambda _: torch.get_num_threads(), range(6), 2)
    next(results)
    results.close()
    assert torch.get_num_threads() == 5
