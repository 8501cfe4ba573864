"""A training step of CPConv2d against the paper's three convolutions: ratios of time and of memory kept.

python benchmarks/cp_training_step.py [--batch 8] [--ranks 1 2 3]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from norton_det.layers.cp_conv import CPConv2d

SHAPES = [(64, 56), (128, 28), (256, 14), (512, 7)]  # channels, map: the stages of ResNet-50 at 224x224


def three_convolutions(layer: CPConv2d, x: Tensor) -> Tensor:
    """The paper's form of a 3x3 layer: 1x1, (3, 1) depthwise, (1, 3) depthwise, sum over the components."""
    channels = layer.rank * layer.out_channels
    down, across = layer.stride
    x = F.conv2d(x, layer.channel.view(channels, -1, 1, 1))
    x = F.conv2d(x, layer.vertical.view(channels, 1, 3, 1), None, (down, 1), (1, 0), groups=channels)
    x = F.conv2d(x, layer.horizontal.view(channels, 1, 1, 3), None, (1, across), (0, 1), groups=channels)
    return x.unflatten(1, (layer.rank, layer.out_channels)).sum(1) if layer.rank > 1 else x


def step_seconds(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    start = time.perf_counter()
    run(x).sum().backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def saved_bytes(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(x)
    return sum(storage.nbytes() for storage in storages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    for rank in arguments.ranks:
        for channels, size in SHAPES:
            layer = CPConv2d(channels, channels, 3, rank, padding=1, bias=False, device=arguments.device)
            x = torch.randn(arguments.batch, channels, size, size, device=arguments.device)
            x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
            runs: list[Callable[[Tensor], Tensor]] = [
                layer,
                lambda x, layer=layer: three_convolutions(layer, x),
            ]
            times: list[list[float]] = [[], []]
            for _ in range(arguments.repeats + 2):
                for run, record in zip(runs, times, strict=True):
                    record.append(step_seconds(run, x))
            ours, theirs = (statistics.median(record[2:]) for record in times)
            kept = [saved_bytes(run, x) for run in runs]
            print(
                f"rank {rank}, {channels:3} channels, {size:2}x{size:<2}: "
                f"{1000 * ours:6.1f} ms, three convolutions {1000 * theirs:6.1f}, {theirs / ours:.2f}x faster; "
                f"keeps {kept[0] / 2**20:5.1f} MiB, three {kept[1] / 2**20:5.1f}, {kept[1] / kept[0]:.2f}x less"
            )


if __name__ == "__main__":
    main()
