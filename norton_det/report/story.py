"""Compares the models of the quickstart's story: one table, and the same photos side by side."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from norton_det.analysis.latency import Latency
from norton_det.data.images import read_image, write_png
from norton_det.visualization.draw import draw_predictions, side_by_side


@dataclass(frozen=True)
class Model:
    """Holds one model of the story: accuracy on the validation set, size, and latency in the story's runtime."""

    AP: float
    AP50: float
    parameters: int
    macs: int
    latency_ms: float


def read_models(
    folders: Mapping[str, Path], sizes: Mapping[str, tuple[int, int]], latencies: Mapping[str, Latency]
) -> dict[str, Model]:
    """Put together each model's AP, which evaluation wrote into its folder, its size, and its latency."""
    models = {}
    for name, folder in folders.items():
        metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())["bbox"]
        models[name] = Model(metrics["AP"], metrics["AP50"], *sizes[name], latencies[name].median)
    return models


def format_table(models: Mapping[str, Model], runtime: str) -> str:
    """Format the table of the story; each model's speed is relative to the dense one's."""
    lines = [f"{'model':14}{'AP':>7}{'AP50':>7}{'parameters':>13}{'MMACs':>8}{f'ms, {runtime}':>14}{'speed':>8}"]
    for name, model in models.items():
        lines.append(
            f"{name:14}{model.AP:>7.1f}{model.AP50:>7.1f}{model.parameters:>13,}{model.macs / 1e6:>8.0f}"
            f"{model.latency_ms:>14.1f}{models['dense'].latency_ms / model.latency_ms:>7.2f}x"
        )
    return "\n".join(lines)


def draw_pictures(images: Path, detectors: Mapping[str, Any], folder: Path, number: int = 8) -> None:
    """Draw the first images of a folder with the detections of each model, side by side."""
    for path in sorted(images.iterdir())[:number]:
        image = read_image(path)
        pictures = [
            draw_predictions(image, detector([image / 255])[0], detector.categories)
            for detector in detectors.values()
        ]
        write_png(folder / f"{path.stem}.png", side_by_side(pictures, list(detectors)))
