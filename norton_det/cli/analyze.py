"""Count parameters and MACs of a configuration's detector, dense beside compressed, part by part."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from norton_det.analysis.complexity import OUTSIDE_TOTAL, Count, count_detector, total
from norton_det.builders.detector import random_pair
from norton_det.config import load_config
from norton_det.files import write_json

LESS_MEMORY = "lower --input-size"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument(
        "--input-size",
        nargs=2,
        type=int,
        default=[800, 800],
        metavar=("H", "W"),
        help="pixels of the image as it enters the body",
    )
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the configuration")


def run(args: argparse.Namespace) -> None:
    """Print the table and write the JSON."""
    height, width = args.input_size
    if min(height, width) < 32:
        raise ValueError(f"--input-size {height} {width}: at least 32 pixels each")
    config = load_config(args.config, args.overrides)
    models = {name: count_detector(built, height, width) for name, built in random_pair(config).items()}
    print(f"an image of {height}x{width} as it enters the body; GMACs: by the paper's formula, three convolutions for"
          " each decomposed one; as run: by the layers as they run here")  # fmt: skip
    print(format_counts(models))
    if args.json:
        write_json(args.json, {"models": {name: to_dict(parts) for name, parts in models.items()}})


def to_dict(parts: dict[str, Count]) -> dict[str, Any]:
    """Return one model's counts as plain types: totals, then the parts."""
    return {**asdict(total(parts)), "parts": {name: asdict(count) for name, count in parts.items()}}


def format_counts(models: dict[str, dict[str, Count]]) -> str:
    """Format a table with a row for each part and three columns for each model."""
    columns = "".join(f"{name + ' params':>22}{'GMACs':>9}{'as run':>9}" for name in models)
    parts = [*next(iter(models.values())), "total"]
    width = max(16, *(len(part) + 1 for part in parts))
    rows = [f"{'part':{width}}{columns}"]
    for part in parts:
        counts = [model[part] if part in model else total(model) for model in models.values()]
        cells = "".join(f"{c.parameters:>22,}{c.macs / 1e9:>9.2f}{c.macs_as_run / 1e9:>9.2f}" for c in counts)
        rows.append(f"{part + ('*' if part == OUTSIDE_TOTAL else ''):{width}}{cells}")
    if OUTSIDE_TOTAL in next(iter(models.values())):
        rows.append("* for one region; its MACs stand beside the total, as in published figures")
    return "\n".join(rows)
