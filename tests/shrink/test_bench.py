"""The stopwatch, on a clock that is set by hand."""

import pytest

from norton_det.shrink import bench
from norton_det.shrink.bench import LEAST_ROUNDS, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    return now


def takes(clock, *seconds):
    """A detector whose calls take so long, one photo after another."""
    calls = []

    def detect(images):
        clock[0] += seconds[images[0]] if len(calls) else 100.0  # the first call prepares itself
        calls.append(images)

    return detect


def test_a_time_is_the_median_over_photos_in_shares_of_the_references(clock):
    stopwatch = Stopwatch(takes(clock, 1.0, 1.0, 2.0), [0, 1, 2])
    assert stopwatch.unit == pytest.approx(1000)
    timed = stopwatch.time(takes(clock, 3.0, 4.0, 5.0))
    assert (timed.typical, timed.p95) == (pytest.approx(4), pytest.approx(5))
    assert stopwatch.moods == [pytest.approx(1)] * 2


@pytest.mark.parametrize(("at_first", "then"), [(1.0, 1.5), (1.5, 1.0)])
def test_a_machine_that_becomes_slower_or_faster_changes_its_mood_and_no_time(clock, at_first, then):
    slower = [at_first]

    def detect(images):
        clock[0] += slower[0]

    stopwatch = Stopwatch(detect, [0])
    slower[0] = then
    timed = stopwatch.time(lambda images: clock.__setitem__(0, clock[0] + 2 * slower[0]))
    assert timed.typical == pytest.approx(2)
    assert stopwatch.unit == pytest.approx(1000)
    assert stopwatch.moods == pytest.approx([at_first, then])


def test_what_earlier_commands_saw_of_the_reference_counts_too(clock):
    stopwatch = Stopwatch(takes(clock, 1.0), [0], earlier=[500.0, 500.0, 600.0])
    assert (stopwatch.unit, stopwatch.least) == (500, 500)
    assert stopwatch.beside[3:] == [pytest.approx(1000)]


def test_a_single_call_that_takes_longer_changes_no_typical_time(clock):
    stopwatch = Stopwatch(takes(clock, 1.0), [0])
    times = iter([50.0, 9.0, *[1.0] * (2 * LEAST_ROUNDS)])
    timed = stopwatch.time(lambda images: clock.__setitem__(0, clock[0] + next(times)))
    assert timed.typical == pytest.approx(1)
    assert timed.p95 > 5
