"""Times several models in one run, in turn, so that changes of a machine's speed hit all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm


@dataclass(frozen=True)
class Latency:
    """Holds milliseconds of one call: median, 5th and 95th percentile over `runs` calls."""

    median: float
    p5: float
    p95: float
    runs: int

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> "Latency":
        """Summarise the times of calls, at least one.

        Examples:
            >>> Latency.of([3.0, 1.0, 2.0])
            Latency(median=2.0, p5=1.0, p95=3.0, runs=3)
        """
        low, high = (quantile(milliseconds, share) for share in (0.05, 0.95))
        return cls(statistics.median(milliseconds), low, high, len(milliseconds))


def interleaved_latency(
    calls: Mapping[str, Callable[[], object]], *, runs: int, warmup: int = 2
) -> dict[str, Latency]:
    """Time each of `calls` `runs` times, in turn (A B A B ..), after `warmup` rounds that are not counted."""
    milliseconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in tqdm(range(warmup + runs), desc="time"):
        for name, call in calls.items():
            taken = 1000 * seconds_of(call)
            if round_number >= warmup:
                milliseconds[name].append(taken)
    return {name: Latency.of(values) for name, values in milliseconds.items()}


def detector_latency(
    detectors: Mapping[str, Callable[[list[Tensor]], object]], images: Sequence[Tensor], *, runs: int
) -> dict[str, Latency]:
    """Time detectors on a batch of images, float32 RGB (3, H, W), in turn."""
    with torch.inference_mode():
        return interleaved_latency(
            {name: partial(detector, list(images)) for name, detector in detectors.items()}, runs=runs
        )


def median_seconds(call: Callable[[], object], runs: int = 5) -> float:
    """Return the median seconds of a few calls, after one that is not counted."""
    return statistics.median([seconds_of(call) for _ in range(runs + 1)][1:])


def seconds_of(call: Callable[[], object]) -> float:
    """Return the seconds of one call, with what it leaves a GPU to do."""
    synchronise()
    start = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - start


def quantile(values: Sequence[float], share: float) -> float:
    """Return the quantile of at least one value at a share, such as 0.05: the value of the nearest rank."""
    return sorted(values)[round(share * (len(values) - 1))]


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
