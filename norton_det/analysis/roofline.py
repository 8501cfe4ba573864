"""Measures what a machine can do at best: its rate of multiplication, and of copying."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from norton_det.analysis.latency import median_seconds


@dataclass(frozen=True)
class Roofline:
    """Holds measured limits in float32 (on a GPU in TF32, as its convolutions): MACs and bytes a second."""

    macs: float
    bytes: float


def measure_roofline(device: torch.device, size: int | None = None, runs: int = 5) -> Roofline:
    """Measure the rates of a product of square matrices and of a copy of 256 MiB, medians of a few runs.

    `size`: the matrices' side; None: 2048, on a GPU 8192.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.rand(size, size, device=device) for _ in range(2))
    source = torch.rand(2**26, device=device)
    target = torch.empty_like(source)
    with _tf32_as_convolutions_have_it() if device.type == "cuda" else nullcontext():
        product = median_seconds(lambda: torch.mm(a, b), runs)
    return Roofline(
        macs=size**3 / product,
        bytes=2 * source.nbytes / median_seconds(lambda: target.copy_(source), runs),
    )


@contextmanager
def _tf32_as_convolutions_have_it() -> Iterator[None]:
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if torch.backends.cudnn.allow_tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(found)
