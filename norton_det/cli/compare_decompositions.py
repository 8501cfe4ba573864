"""Compare decompositions of a ResNet's 3x3 convolutions at equal numbers of parameters."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from norton_det.cli.options import require_at_least
from norton_det.compression.comparison import METHODS, Measurement, compare_decompositions, resnet_convolutions
from norton_det.files import write_json
from norton_det.models.weights import read_weights
from norton_det.visualization.decomposition_plot import save_decomposition_plot

_LAYERS = ["layer1.1.conv2", "layer2.1.conv2", "layer3.1.conv2"]
LESS_MEMORY = "lower --input-size, or compare fewer --layers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--weights", type=Path, help="a dense ResNet or detector (default: a ResNet-50 with random weights)"
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        default=_LAYERS,
        metavar="LAYER",
        help="3x3 convolutions (default: one in each of stages 1 to 3; layer-wise CP in stage 4 takes an hour, 7 GB)",
    )
    parser.add_argument(
        "--ranks",
        nargs="+",
        type=int,
        default=[1, 2, 3, 4],
        metavar="R",
        help="ranks of filter-wise CP; the other methods take the ranks that cost as many parameters",
    )
    parser.add_argument("--input-size", type=int, default=224, help="pixels of the network's square input")
    parser.add_argument("--runs", type=int, default=20, help="timed calls of each decomposition")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights and of the timed input")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--plot", type=Path, help="draw the curves into this file (.png)")


def run(args: argparse.Namespace) -> None:
    """Print the table, write the JSON and the plot."""
    require_at_least(args, ranks=1, input_size=32, runs=1)
    torch.manual_seed(args.seed)
    weights = read_weights(args.weights) if args.weights else None
    found = resnet_convolutions(args.layers, weights, args.input_size)
    convs = {layer: conv for layer, (conv, _) in found.items()}
    images = {layer: torch.randn(shape).to(memory_format=torch.channels_last) for layer, (_, shape) in found.items()}
    with tqdm(total=len(convs) * len(args.ranks) * len(METHODS[1:]), desc="decompose") as bar:
        results = {
            layer: compare_decompositions(conv, args.ranks, images[layer], runs=args.runs, progress=bar.update)
            for layer, conv in convs.items()
        }
    print(format_results({_title(layer, convs[layer], images[layer]): rows for layer, rows in results.items()}))
    if args.json:
        write_json(args.json, to_dict(args.weights, convs, images, results))
    if args.plot:
        save_decomposition_plot(args.plot, {layer: [asdict(m) for m in rows] for layer, rows in results.items()})
        print(f"plot: {args.plot}")


def to_dict(
    weights: Path | None,
    convs: dict[str, nn.Conv2d],
    images: dict[str, Tensor],
    results: dict[str, list[Measurement]],
) -> dict[str, object]:
    """Put the results into plain types, by layer."""
    layers = {
        layer: {
            "shape": list(convs[layer].weight.shape),
            "stride": list(convs[layer].stride),
            "input": list(images[layer].shape),
            "measurements": [asdict(measurement) for measurement in measurements],
        }
        for layer, measurements in results.items()
    }
    return {"weights": None if weights is None else str(weights), "layers": layers}


def format_results(results: dict[str, Sequence[Measurement]]) -> str:
    """Format a table: a block for each layer under its title, in it a row for each decomposition, by budget."""
    head = f"{'method':22}{'rank':>10}{'convs':>7}{'NMSE':>9}{'parameters':>12}{'MMACs':>10}{'as run':>10}{'ms':>9}"
    lines = [head]
    for title, measurements in results.items():
        lines += ["", title]
        previous = 0
        for m in measurements:
            lines += [""] if m.filter_rank > previous > 0 else []
            previous = m.filter_rank
            ranks = ", ".join(map(str, m.ranks)) or "-"
            lines.append(
                f"{m.method:22}{ranks:>10}{m.sub_layers:>7}{m.nmse:>9.4f}{m.parameters:>12,}"
                f"{m.macs / 1e6:>10.1f}{m.macs_as_run / 1e6:>10.1f}{m.latency_ms:>9.2f}"
            )
    return "\n".join(
        [*lines, "", "MMACs of filter-wise CP follow the paper's formula for three convolutions; it runs as two"]
    )


def _title(layer: str, conv: nn.Conv2d, image: Tensor) -> str:
    shape, sides = (" x ".join(map(str, sizes)) for sizes in (conv.weight.shape, image.shape[2:]))
    return f"{layer}: {shape}, stride {conv.stride[0]}, on {sides}"
