"""Draw a detector's findings on images, and write them as JSON."""

import argparse
import glob
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from norton_det.api import load_detector
from norton_det.cli.options import find_trained, share
from norton_det.data.catalog import Categories
from norton_det.data.images import LONGEST_SHOWN, find_images, picture_names, read_photo, write_png
from norton_det.engine.distributed import find_device
from norton_det.evaluation.results import named_results
from norton_det.files import write_json
from norton_det.visualization.draw import draw_predictions
from norton_det.visualization.window import Window

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--weights",
        help="a detector's weights or an exported file (default: the newest model_final.pth below output/)",
    )
    parser.add_argument(
        "--input", required=True, nargs="+", help="image files, patterns such as 'photos/*.jpg', folders"
    )
    parser.add_argument(
        "--output", type=Path, help="a folder for the pictures; without it a window (any key: the next; q: quit)"
    )
    parser.add_argument("--json", type=Path, help="write the detections to this file")
    parser.add_argument("--confidence", type=share, default=0.5, help="keep detections of at least this score")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> None:
    """Write or show a picture of each image; an image that cannot be read is logged, and the others go on."""
    device = find_device(args.device)
    weights = find_trained(args.weights, None)
    if weights is None:
        raise ValueError("no trained detector below output/: name one with --weights, or run make quickstart")
    paths = find_inputs(args.input)
    window = None if args.output else Window("norton_det")
    detector: Any = load_detector(weights).to(device).eval()
    names = picture_names(paths)
    categories = Categories(tuple(detector.categories), tuple(detector.category_ids))
    results: list[dict[str, Any]] = []
    unread: list[Path] = []
    longest = max(LONGEST_SHOWN, longest_seen(detector))
    for path, image, scale in _readable(tqdm(paths, desc="detect"), longest, unread):
        with torch.inference_mode():
            found = detector([image.to(device) / 255])[0]
        shown = found["scores"] >= args.confidence
        kept = {key: value[shown].cpu() for key, value in found.items()}
        results.append(
            {
                "file": str(path),
                "scale": scale,
                "height": image.shape[1],
                "width": image.shape[2],
                "detections": named_results(kept, categories),
            }
        )
        keypoints = getattr(detector, "keypoints", None)
        picture = draw_predictions(image, kept, detector.categories, args.confidence, keypoints)
        if window is None:
            write_png(args.output / names[path], picture)
        elif not window.show(picture, until_key=True):
            break
    if args.json:
        write_json(args.json, results)
    if window is None:
        print(f"pictures: {args.output}")
    if unread:
        raise ValueError(f"{len(unread)} of {len(paths)} images could not be read, see above")


def find_inputs(inputs: Sequence[str]) -> list[Path]:
    """Return the files that files, patterns and folders stand for, in that order, each once.

    Raises ValueError for a pattern or a folder without images.
    """
    paths: list[Path] = []
    for text in inputs:
        if Path(text).is_dir():
            paths += find_images(Path(text))
        elif glob.has_magic(text) and not Path(text).exists():
            matched = sorted(glob.glob(text, recursive=True))
            if not matched:
                raise ValueError(f"--input {text}: no file matches")
            paths += map(Path, matched)
        else:
            paths.append(Path(text))
    return list(dict.fromkeys(paths))


def longest_seen(detector: Any) -> int:
    """Return the longest side in pixels to which a detector, or one of an exported file, resizes images."""
    transform = detector.transform
    return int(max(transform.max_size, *(transform.fixed_size or (0,))))


def _readable(paths: Iterable[Path], longest: int, unread: list[Path]) -> Iterator[tuple[Path, Tensor, float]]:
    """Yield each image that can be read, with its path and scale; the others' paths are added to `unread`."""
    for path in paths:
        try:
            image, scale = read_photo(path, longest)
        except (ValueError, OSError) as error:
            log.error("%s", error)
            unread.append(path)
            continue
        yield path, image.as_subclass(Tensor), scale
