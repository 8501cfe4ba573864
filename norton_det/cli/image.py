"""Draw a detector's findings on images."""

import argparse
import logging
from pathlib import Path

import torch
from torchvision.io import write_png
from tqdm import tqdm

from norton_det.api import load_detector
from norton_det.data.images import read_image
from norton_det.files import atomic_path
from norton_det.visualization.draw import draw_predictions

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--weights", required=True, help="a detector's weights file")
    parser.add_argument("--input", required=True, nargs="+", type=Path, help="image files")
    parser.add_argument("--output", required=True, type=Path, help="a folder for the pictures")
    parser.add_argument("--confidence", type=float, default=0.5, help="draw detections of at least this score")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(args: argparse.Namespace) -> None:
    """Write one picture an image."""
    detector = load_detector(args.weights).to(args.device).eval()
    for path in tqdm(args.input, desc="detect"):
        image = read_image(path)
        with torch.inference_mode():
            prediction = detector([image.to(args.device) / 255])[0]
        picture = draw_predictions(
            image,
            {key: value.cpu() for key, value in prediction.items()},
            detector.categories,
            args.confidence,
        )
        with atomic_path(args.output / f"{path.stem}.png") as temporary:
            write_png(picture, str(temporary))
    print(f"pictures: {args.output}")
