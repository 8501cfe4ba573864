"""What decomposition and pruning do to a trained ResNet-50 before any fine-tuning, ours beside the published code.

    python benchmarks/real_filters.py --weights resnet50.pth --images coco/val2017 [--json F.json] [--plot P.png]

Measured from the stem to layer3, so a file that lacks layer4 will do. The weights must come from a network with
the stride of a stage in its first 1x1 convolution, as the original ResNet-50 has it; torchvision's have it in the
3x3 one. Nothing is adapted to the images, not even BatchNorm's statistics.
"""

import argparse
import logging
from pathlib import Path

import torch
from matplotlib.figure import Figure
from published import published_angles, published_compress, published_distances, published_kept
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet50_Weights

from norton_det.compression.compress import compress
from norton_det.compression.plan import CompressionPlan, kept_channels, load_plan
from norton_det.data.images import find_images, read_image
from norton_det.files import write_json
from norton_det.models.channels import read_body
from norton_det.models.persistence import resnet_from_weights
from norton_det.models.slicing import slice_channels
from norton_det.models.weights import read_weights
from norton_det.ops.cp import decompose_filters
from norton_det.ops.factors import nmse, reconstruct
from norton_det.ops.similarity import pabs_distances
from norton_det.visualization.plots import save_figure

MEASURED = ("layer1", "layer2", "layer3")
LAYERS = [
    f"{stage}.{block}.conv2" for stage, count in zip(MEASURED, (3, 4, 6), strict=True) for block in range(count)
]
LAST_CONVOLUTIONS = {"layer1": "layer1.2.conv3", "layer2": "layer2.3.conv3", "layer3": "layer3.5.conv3"}
RANKS = (1, 2, 3, 4, 5, 6)
RANDOM_DRAWS = 3
PLANS = {"rate 0": "[0.]*20"} | {name: name for name in ("norton-43", "norton-59", "norton-77")}

Table = dict[str, dict[str, float]]
"""Numbers by row, then by column."""


def load_network(path: str) -> ResNet:
    network = resnet_from_weights(read_weights(path), strict=False).eval()
    for stage in ("layer2", "layer3", "layer4"):
        block = network.get_submodule(f"{stage}.0")
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    return network


def image_paths(folder: Path, count: int) -> list[Path]:
    """The first images of a folder by name."""
    paths = find_images(folder, count)
    if len(paths) < count:
        raise SystemExit(f"{folder} holds {len(paths)} images, {count} are needed")
    return paths


def load_images(paths: list[Path], **normalisation: tuple[float, ...]) -> Tensor:
    """Of each image, its shorter side 256 pixels, the central 224, normalised, by ImageNet's mean and std unless
    others are given: (N, 3, 224, 224)."""
    transform = ResNet50_Weights.IMAGENET1K_V1.transforms(**normalisation)
    return torch.stack([transform(read_image(path)) for path in paths])


@torch.inference_mode()
def stage_outputs(network: ResNet, images: Tensor) -> dict[str, Tensor]:
    """The outputs (N, channels, h, w) of layer1 to layer3."""
    outputs: dict[str, list[Tensor]] = {stage: [] for stage in MEASURED}
    for batch in images.split(8):
        x = network.maxpool(network.relu(network.bn1(network.conv1(batch))))
        for stage in MEASURED:
            x = network.get_submodule(stage)(x)
            outputs[stage].append(x)
    return {stage: torch.cat(batches) for stage, batches in outputs.items()}


def compare(
    network: ResNet, images: Tensor, dense: dict[str, Tensor], kept: dict[str, list[int]]
) -> dict[str, float]:
    """How far the stages' outputs y are from the dense network's, at its channels `kept`, over all images.

    By stage the relative error ||y - y_dense|| / ||y_dense||, and the share of y_dense's variance that no scale and
    shift of y's channels explains (1 - correlation^2, the mean over channels that vary): 1 where they are unrelated.
    """
    errors, unexplained = {}, {}
    for stage, y in stage_outputs(network, images).items():
        y, reference = (t.transpose(0, 1).flatten(1).double() for t in (y, dense[stage][:, kept[stage]]))
        errors[stage] = ((y - reference).norm() / reference.norm()).item()
        y, reference = (t - t.mean(dim=1, keepdim=True) for t in (y, reference))
        variances = reference.square().sum(dim=1)
        explained = (y * reference).sum(dim=1).square() / (y.square().sum(dim=1) * variances).clamp_min(1e-30)
        unexplained[f"{stage}, unexplained"] = 1 - explained[variances > 0].mean().item()
    return {**errors, **unexplained}


def nmse_by_rank(network: ResNet) -> Table:
    return {
        layer: {str(rank): nmse(weight, reconstruct(decompose_filters(weight, rank))) for rank in RANKS}
        for layer, weight in ((layer, network.get_submodule(layer).weight) for layer in LAYERS)
    }


def decomposition_errors(network: ResNet, images: Tensor, dense: dict[str, Tensor]) -> Table:
    """The stages' errors after decomposition alone, by rank."""
    table = {}
    for rank in RANKS[:3]:
        decomposed, report = compress(network, CompressionPlan(dict.fromkeys(LAYERS, rank)))
        table[f"rank {rank}"] = compare(decomposed, images, dense, report.kept)
    return table


def pruning_errors(network: ResNet, images: Tensor, dense: dict[str, Tensor], rank: int) -> Table:
    """The stages' errors after decomposition and pruning: ours, ours with 3x3 filters ranked by deviation too, the
    published code's, and with tied channels that are dropped at random, the mean of several draws."""
    table = {}
    for name, notation in PLANS.items():
        plan = load_plan(notation, read_body(network), rank)
        ours, report = compress(network, plan)
        table[f"{name}, ours"] = compare(ours, images, dense, report.kept)
        ours, report = compress(network, plan, criterion="deviation")
        table[f"{name}, deviation"] = compare(ours, images, dense, report.kept)
        draws = [pruned_at_random(network, plan) for _ in range(RANDOM_DRAWS)]
        controls = [compare(control, images, dense, kept) for control, kept in draws]
        table[f"{name}, random"] = {key: sum(c[key] for c in controls) / len(controls) for key in controls[0]}
        theirs = published_compress(network, plan)
        # The members of its sums disagree; its channels are called what the last one, conv3, calls them.
        kept = {
            stage: published_kept(network.get_submodule(conv), theirs.get_submodule(conv).out_channels).tolist()
            for stage, conv in LAST_CONVOLUTIONS.items()
        }
        table[f"{name}, published"] = compare(theirs, images, dense, kept)
    return table


def pruned_at_random(network: ResNet, plan: CompressionPlan) -> tuple[nn.Module, dict[str, list[int]]]:
    """The control: ours, but for the choice of channels."""
    decomposed, _ = compress(network, CompressionPlan(plan.ranks))
    kept = {}
    for name, group in read_body(decomposed).groups.items():
        chosen = torch.randperm(group.width)[: kept_channels(group.width, plan.rates.get(name, 0.0))].sort().values
        slice_channels(decomposed, group.producers, group.readers, chosen)
        kept[name] = chosen.tolist()
    return decomposed, kept


def lost_distances(network: ResNet) -> Table:
    """Shares of all pairs of filters that the published formulas call identical (by the channel mode alone, by the
    whole distance), and ours, by rank."""
    table = {}
    for rank in RANKS[:3]:
        counts = torch.zeros(3, dtype=torch.float64)
        pairs = 0
        for layer in LAYERS:
            factors = decompose_filters(network.get_submodule(layer).weight, rank)
            upper = tuple(torch.triu_indices(factors.filters, factors.filters, offset=1))
            distances = (published_angles(factors.channel), published_distances(factors), pabs_distances(factors))
            counts += torch.stack([(values[upper] < 1e-6).sum() for values in distances])
            pairs += upper[0].numel()
        columns = ("published, channel angle", "published, distance", "ours, distance")
        table[f"rank {rank}"] = dict(zip(columns, (counts / pairs).tolist(), strict=True))
    return table


def markdown(title: str, corner: str, table: Table) -> str:
    columns = list(next(iter(table.values())))
    lines = [f"{title}:", "", f"| {corner} | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for row, values in table.items():
        lines.append(f"| {row} | {' | '.join(f'{values[column]:.3f}' for column in columns)} |")
    return "\n".join(lines) + "\n"


def save_plot(path: Path, table: Table) -> None:
    """NMSE against rank: a thin line a layer, a colour a stage, its mean thick."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for number, stage in enumerate(MEASURED):
        curves = torch.tensor([list(row.values()) for layer, row in table.items() if layer.startswith(stage)])
        for curve in curves:
            axes.plot(RANKS, curve, color=f"C{number}", linewidth=0.8, alpha=0.45)
        label = f"{stage}: mean of its {len(curves)} layers"
        axes.plot(RANKS, curves.mean(dim=0), color=f"C{number}", linewidth=2.2, marker="o", label=label)
    axes.set_xlabel("CP rank of each filter")
    axes.set_ylabel("NMSE of the 3x3 convolution")
    axes.set_xticks(RANKS)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="a ResNet-50's weights, at least up to layer3")
    parser.add_argument("--images", required=True, type=Path, help="a folder of images")
    parser.add_argument("--count", type=int, default=32, help="how many of them")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="draw the NMSE by rank here (.png)")
    arguments = parser.parse_args()
    logging.getLogger("norton_det").setLevel(logging.ERROR)  # that layer4 is missing is no news
    torch.manual_seed(0)  # what the file lacks, and what the published code does not copy, is random

    network = load_network(arguments.weights)
    paths = image_paths(arguments.images, arguments.count)
    images = load_images(paths)
    dense = stage_outputs(network, images)
    tables = {
        "nmse": nmse_by_rank(network),
        "decomposition": decomposition_errors(network, images, dense),
        "pruning_rank_1": pruning_errors(network, images, dense, rank=1),
        "pruning_rank_3": pruning_errors(network, images, dense, rank=3),
        "identical_pairs": lost_distances(network),
    }
    print(markdown("NMSE by rank", "layer", tables["nmse"]))
    print(markdown("Relative error, decomposed", "", tables["decomposition"]))
    print(markdown("Relative error, decomposed and pruned at rank 1", "plan", tables["pruning_rank_1"]))
    print(markdown("Relative error, decomposed and pruned at rank 3", "plan", tables["pruning_rank_3"]))
    print(markdown("Share of pairs of filters at distance 0", "", tables["identical_pairs"]))
    if arguments.json:
        write_json(arguments.json, {"images": [path.name for path in paths], **tables}, indent=2)
    if arguments.plot:
        save_plot(arguments.plot, tables["nmse"])


if __name__ == "__main__":
    main()
