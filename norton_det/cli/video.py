"""Draw a detector's findings on a video, a webcam or a drawn clip, with the frame rate; with --compare, dense and
compressed side by side."""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import get_args

from torch import Tensor
from tqdm import tqdm

from norton_det.cli.options import find_trained, require_at_least, share
from norton_det.data.clip import FRAME_RATE, drawn_clip
from norton_det.deploy.demo import COCO_FRAMES, RunOptions, compressed_coco, demo_detectors
from norton_det.deploy.optimize import Runtime
from norton_det.deploy.throughput import for_many
from norton_det.engine.distributed import find_device
from norton_det.visualization.comparison import detect, draw_found, summarise
from norton_det.visualization.sources import Camera, Video
from norton_det.visualization.video import ahead, open_screen

LEAST_SIZE = 32
"""The smallest shorter side in pixels."""
RECENT = 15
"""The last frames, of which the median latency is shown."""
LESS_MEMORY = "lower --size, or play a smaller video"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--weights",
        help="a detector's weights or an exported file (default: the newest model_final.pth below output/)",
    )
    parser.add_argument("--config", help="use the detector that this configuration trained")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--webcam", nargs="?", const=0, type=int, metavar="INDEX", help="a camera, the first by default"
    )
    source.add_argument(
        "--video-input", metavar="FILE", help="a video file, or an address (http, rtsp) (default: a drawn clip)"
    )
    parser.add_argument("--output", type=Path, help="the video to write (.mp4); without it a window (q: quit)")
    parser.add_argument(
        "--compare",
        nargs="?",
        const="",
        metavar="DENSE_WEIGHTS",
        help="run a dense detector beside it (without a file: the one that it came from)",
    )
    parser.add_argument("--confidence", type=share, default=0.5, help="draw detections of at least this score")
    parser.add_argument("--runtime", default="auto", choices=get_args(Runtime), help="what runs it")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--size", type=int, help="pixels of the shorter side that the detector sees")
    parser.add_argument("--max-frames", type=int, help="stop after this many frames")


def run(args: argparse.Namespace) -> None:
    """Show or write the drawn frames, and print how fast each detector was."""
    if args.output and args.output.suffix.lower() != ".mp4":
        raise ValueError(f"--output {args.output}: a video is an .mp4 file")
    require_at_least(args, max_frames=1, size=LEAST_SIZE)
    device = find_device(args.device)
    weights = find_trained(args.weights, args.config)
    frames, frame_rate, is_live = _open_source(args)
    with open_screen(args.output, frame_rate, is_live) as screen:
        first = list(itertools.islice(frames, 1 if weights else COCO_FRAMES))
        if not first:
            raise ValueError("the camera or video gives no frame")
        detectors = demo_detectors(
            weights or compressed_coco(first),
            args.compare,
            first[0],
            RunOptions(device, args.runtime, args.size),
        )
        if not is_live and len(detectors) == 1:  # nothing waits for a single frame, and nothing is compared
            detectors = [replace(detectors[0], detect=for_many(detectors[0].detect))]
        frames = itertools.islice(itertools.chain(first, frames), args.max_frames)
        latencies: list[list[float]] = [[] for _ in detectors]
        started = time.perf_counter()
        with (
            suppress(KeyboardInterrupt),
            closing(ahead(frames, newest_only=is_live)) as frames,
            closing(ahead(detect(detectors, frames, device), newest_only=is_live)) as found,
        ):
            for result in tqdm(found, desc="detect"):
                for measured, milliseconds in zip(latencies, result.milliseconds, strict=True):
                    measured.append(milliseconds)
                recent = [statistics.median(measured[-RECENT:]) for measured in latencies]
                if not screen.show(draw_found(detectors, result, recent, args.confidence)):
                    break
    print(summarise(detectors, latencies, time.perf_counter() - started))
    if args.output:
        print(f"video: {args.output}")


def _open_source(args: argparse.Namespace) -> tuple[Iterator[Tensor], float, bool]:
    """Return the frames, their rate in frames a second, and whether they are live."""
    if args.webcam is None and args.video_input is None:
        return drawn_clip(), FRAME_RATE, False
    source = Video(args.video_input) if args.webcam is None else Camera(args.webcam)
    return iter(source), source.frame_rate, source.is_live
