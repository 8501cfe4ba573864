"""Latency by a clock that the calls themselves move on."""

import pytest
import torch

from norton_det.analysis import latency, roofline
from norton_det.analysis.latency import Latency, detector_latency, interleaved_latency, median_seconds


class Clock:
    def __init__(self):
        self.now = 0.0

    def taking(self, *seconds):
        """A call that takes so long, the last of them from then on."""
        left = list(seconds)

        def call(*_):
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock.now)
    return clock


def test_calls_are_timed_in_turn_in_milliseconds_after_the_warm_up(clock):
    found = interleaved_latency({"a": clock.taking(9, 9, 1, 2, 6), "b": clock.taking(0.5)}, runs=3)
    assert found["a"] == Latency(median=2000, p5=1000, p95=6000, runs=3)
    assert found["b"] == Latency(median=500, p5=500, p95=500, runs=3)


def test_the_ends_are_the_5th_and_95th_percentile():
    assert Latency.of(range(100, -1, -1)) == Latency(median=50, p5=5, p95=95, runs=101)


def test_the_median_leaves_out_the_first_call(clock):
    assert median_seconds(clock.taking(100, 3, 1, 2), runs=3) == pytest.approx(2)


def test_detectors_get_the_whole_batch():
    batches = []
    images = [torch.rand(3, 4, 4) for _ in range(2)]
    detector_latency(
        {"a": lambda batch: batches.append((len(batch), torch.is_inference_mode_enabled()))}, images, runs=1
    )
    assert set(batches) == {(2, True)}


def test_rates_are_work_by_time(monkeypatch):
    monkeypatch.setattr(roofline, "median_seconds", lambda call, runs: 0.5)
    monkeypatch.setattr(roofline.torch, "rand", lambda *size, device: torch.empty(*size, device="meta"))
    found = roofline.measure_roofline(torch.device("cpu"), size=10)
    assert (found.macs, found.bytes) == (2 * 10**3, 2 * 2 * 4 * 2**26)  # read and written
