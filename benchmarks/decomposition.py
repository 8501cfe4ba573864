"""Batched decomposition and pairwise angles against one-at-a-time loops, as ratios from one run; and the seconds
that decomposing and pruning a whole ResNet-50 takes.

    python benchmarks/decomposition.py [--weights resnet50.pth] [--ranks 1 2 3]

The shapes are those of the sixteen 3x3 convolutions of ResNet-50. The loops are timed on a sample and scaled.
"""

import argparse
import time
import warnings

import numpy as np
import scipy.linalg
import tensorly
import torch
from tensorly.decomposition import parafac
from torch import Tensor
from torchvision.models import resnet50

from norton_det.compression.compress import compress
from norton_det.compression.plan import load_plan
from norton_det.models.channels import read_body
from norton_det.ops.cp import decompose_filters
from norton_det.ops.factors import CPFactors, nmse, reconstruct
from norton_det.ops.similarity import pabs_distances

LAYERS = [(stage, block) for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)) for block in range(blocks)]


def load_filters(path: str | None) -> list[Tensor]:
    """The sixteen weights; random where the file is missing or lacks one."""
    state = torch.load(path, weights_only=True, map_location="cpu") if path else {}
    generator = torch.Generator().manual_seed(0)
    weights = []
    for stage, block in LAYERS:
        width = 32 * 2**stage
        weight = state.get(f"layer{stage}.{block}.conv2.weight")
        weights.append(torch.randn(width, width, 3, 3, generator=generator) if weight is None else weight.float())
    return weights


def tensorly_loop(weight: Tensor, sample: Tensor, rank: int) -> tuple[float, float]:
    """Seconds for all filters of a layer, scaled from a sample, and the NMSE on the sample."""
    error = 0.0
    start = time.perf_counter()
    for tensor in weight[sample].double().numpy():
        error += ((tensor - tensorly.cp_to_tensor(parafac(tensor, rank))) ** 2).sum()
    seconds = (time.perf_counter() - start) * len(weight) / len(sample)
    return seconds, error / weight[sample].double().square().sum().item()


def compare_decompositions(weights: list[Tensor], rank: int, count: int) -> None:
    theirs, ours, worst = 0.0, 0.0, -1.0
    their_nmse, our_nmse = [], []
    for weight in weights:
        sample = torch.linspace(0, len(weight) - 1, count).long()
        start = time.perf_counter()
        factors = decompose_filters(weight, rank)
        ours += time.perf_counter() - start
        seconds, error = tensorly_loop(weight, sample, rank)
        theirs += seconds
        their_nmse.append(error)
        our_nmse.append(nmse(weight[sample], reconstruct(factors.select(sample))))
        worst = max(worst, our_nmse[-1] / error - 1)
    print(
        f"rank {rank}: batched {ours:6.2f} s, loop {theirs:7.1f} s, {theirs / ours:5.0f}x; NMSE "
        f"{np.mean(our_nmse):.4f}, loop {np.mean(their_nmse):.4f}, worst layer {100 * worst:+.2f} %"
    )


def compare_distances(filters: int = 512, rank: int = 3, sample: int = 300) -> None:
    generator = torch.Generator().manual_seed(0)
    factors = CPFactors(*(torch.randn(filters, n, rank, generator=generator) for n in (filters, 3, 3)))
    pabs_distances(factors)
    start = time.perf_counter()
    pabs_distances(factors)
    ours = time.perf_counter() - start
    modes = [factor.numpy() for factor in factors.modes]
    start = time.perf_counter()
    for b in range(1, sample + 1):
        for mode in modes:
            np.arcsin(np.sqrt(np.mean(np.sin(scipy.linalg.subspace_angles(mode[0], mode[b])) ** 2)))
    theirs = (time.perf_counter() - start) / sample * filters * (filters - 1) / 2
    print(f"angles of {filters} filters, rank {rank}: {ours:.3f} s, loop {theirs:.1f} s, {theirs / ours:.0f}x")


def time_whole_network() -> None:
    network = resnet50()
    for plan in ("norton-43", "norton-77"):
        start = time.perf_counter()
        compress(network, load_plan(plan, read_body(network)))
        print(f"ResNet-50 decomposed and pruned, {plan}: {time.perf_counter() - start:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="a ResNet-50's state_dict; default: random filters")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--sample", type=int, default=8, help="filters of each layer that the loop decomposes")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Trying to compute SVD")
    weights = load_filters(arguments.weights)
    decompose_filters(weights[0], 2)
    for rank in arguments.ranks:
        compare_decompositions(weights, rank, arguments.sample)
    compare_distances()
    time_whole_network()


if __name__ == "__main__":
    main()
