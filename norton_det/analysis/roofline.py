"""What a machine can do at best: its rate of multiplication, and of copying."""

from dataclasses import dataclass

import torch

from norton_det.analysis.latency import median_seconds


@dataclass(frozen=True)
class Roofline:
    """Measured limits in float32: multiply-accumulates a second, bytes moved a second."""

    macs: float
    bytes: float


def measure_roofline(device: torch.device, size: int = 2048, runs: int = 5) -> Roofline:
    """The rates of a product of square matrices of `size` and of a copy of 256 MiB, medians of a few runs."""
    a, b = (torch.rand(size, size, device=device) for _ in range(2))
    source = torch.rand(2**26, device=device)
    target = torch.empty_like(source)
    return Roofline(
        macs=size**3 / median_seconds(lambda: torch.mm(a, b), runs),
        bytes=2 * source.nbytes / median_seconds(lambda: target.copy_(source), runs),
    )
