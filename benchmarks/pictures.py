"""A picture for the README: what detectors find on photos, a column a detector, with what a photo takes them.

    python benchmarks/pictures.py --detectors dense=dense.pth small=small.xml --photos a.jpg b.mp4 --output seen.jpg

Weights are optimised for OpenVINO in float32, exported files run as they are; all are timed in turn. A video gives
the frame in its middle.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torchvision.io import write_jpeg
from torchvision.transforms.v2.functional import resize

from norton_det.analysis.latency import detector_latency
from norton_det.api import load_detector, optimize
from norton_det.data.images import read_image
from norton_det.deploy.demo import DemoDetector
from norton_det.deploy.runtimes import EXPORTED
from norton_det.files import atomic_path
from norton_det.visualization.comparison import detect, draw_found
from norton_det.visualization.sources import Video

HEIGHT, CONFIDENCE, RUNS = 360, 0.6, 15
VIDEOS = (".mp4", ".webm")


def read_picture(path: Path) -> Tensor:
    """A photo, or the frame in the middle of a video, uint8 RGB, HEIGHT pixels high."""
    if path.suffix in VIDEOS:
        frames = list(Video(path))
        image = frames[len(frames) // 2]
    else:
        image = read_image(path)
    return resize(image, [HEIGHT, round(HEIGHT * image.shape[2] / image.shape[1])])


def draw_row(photo: Tensor, detectors: list[DemoDetector]) -> Tensor:
    """One photo as each detector sees it."""
    latencies = detector_latency({each.name: each.detect for each in detectors}, [photo / 255], runs=RUNS)
    with torch.inference_mode():
        [found] = detect(detectors, [photo], torch.device("cpu"))
    return draw_found(detectors, found, [latencies[each.name].median for each in detectors], CONFIDENCE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--photos", nargs="+", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    photos = [read_picture(path) for path in args.photos]
    detectors = []
    for told in args.detectors:
        name, _, file = told.partition("=")
        detector = load_detector(file)
        exported = Path(file).suffix in EXPORTED
        runs = detector if exported else optimize(detector, [photos[0] / 255], "openvino")
        detectors.append(DemoDetector(name, runs))
    rows = [draw_row(photo, detectors) for photo in photos]
    width = max(row.shape[2] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, width - row.shape[2]), value=255) for row in rows]
    with atomic_path(args.output) as temporary:
        write_jpeg(torch.cat(padded, 1), str(temporary), quality=85)


if __name__ == "__main__":
    main()
