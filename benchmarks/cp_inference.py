"""A CP convolution in its chosen form against the paper's three convolutions and the dense one, over ResNet-50.

    python benchmarks/cp_inference.py [--rank 1] [--image 800 1066] [--runs 9]

The sixteen 3x3 convolutions at the sizes that they meet in a detector; torch, float32; medians of calls in turn.
"""

import argparse
import statistics
from functools import partial

import torch
from cp_training_step import three_convolutions

from norton_det.analysis.latency import interleaved_latency
from norton_det.deploy.forms import cp_shape, torch_timer
from norton_det.layers.cp_conv import FORMS, CPConv2d, in_form

STAGES = [(64, 4, 3), (128, 8, 4), (256, 16, 6), (512, 32, 3)]  # width, stride of the map, blocks


def layers(height: int, width: int) -> list[tuple[int, int, tuple[int, int], int]]:
    """Channels, stride, input map, and how many of ResNet-50's layers are like that."""
    found = []
    for channels, stride, blocks in STAGES:
        size = (-(-height // stride), -(-width // stride))
        if stride > 4:
            found.append((channels, 2, (-(-height // (stride // 2)), -(-width // (stride // 2))), 1))
            blocks -= 1
        found.append((channels, 1, size, blocks))
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--image", type=int, nargs=2, default=[800, 1066])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    timer = torch_timer(device, torch.float32)
    rows: list[dict[str, float]] = []
    for channels, stride, size, count in layers(*arguments.image):
        layer = CPConv2d(channels, channels, 3, arguments.rank, stride, 1, bias=False, device=device)
        seconds = {form: timer(cp_shape(layer), form, (1, channels, *size)) for form in FORMS}
        chosen = min(FORMS, key=seconds.__getitem__)
        fast, dense = (in_form(layer, form).to(memory_format=torch.channels_last) for form in (chosen, "dense"))
        x = torch.randn(1, channels, *size, device=device)
        last = x.contiguous(memory_format=torch.channels_last)
        calls = {
            "chosen": partial(fast, last),
            "three": partial(three_convolutions, layer, last),
            "three, contiguous": partial(three_convolutions, layer, x),
            "dense": partial(dense, last),
        }
        times = {name: latency.median for name, latency in interleaved_latency(calls, runs=arguments.runs).items()}
        print(f"{channels:3} channels, {size[0]}x{size[1]}, stride {stride}, {count} layers, form {chosen}: "
              + ", ".join(f"{name} {ms:.2f} ms" for name, ms in times.items()))  # fmt: skip
        rows += [times] * count
    for name in ("three, contiguous", "three", "dense"):
        ratio = statistics.geometric_mean(row[name] / row["chosen"] for row in rows)
        print(f"against {name}: {ratio:.2f}x (geometric mean of {len(rows)} layers)")


if __name__ == "__main__":
    main()
