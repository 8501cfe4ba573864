"""Draw a detector's findings on a video or a webcam, with the frame rate."""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

from norton_det.api import load_detector
from norton_det.visualization.draw import draw_predictions, with_title
from norton_det.visualization.video import VideoSource, video_sink


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--weights", required=True, help="a detector's weights file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--webcam", nargs="?", const=0, type=int, metavar="INDEX", help="a camera, the first by default"
    )
    source.add_argument("--video-input", type=Path, help="a video file")
    parser.add_argument("--output", required=True, type=Path, help="the video to write (.mp4)")
    parser.add_argument("--confidence", type=float, default=0.5, help="draw detections of at least this score")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--max-frames", type=int, help="stop after so many frames")


def run(args: argparse.Namespace) -> None:
    """Write the drawn video and print how fast the detector was."""
    source = VideoSource(args.video_input if args.webcam is None else args.webcam)
    detector = load_detector(args.weights).to(args.device).eval()
    latencies: list[float] = []
    with video_sink(args.output, source.frame_rate) as sink, torch.inference_mode():
        for frame in tqdm(itertools.islice(source, args.max_frames), desc="detect"):
            start = time.perf_counter()
            prediction = {key: value.cpu() for key, value in detector([frame.to(args.device) / 255])[0].items()}
            latencies.append(1000 * (time.perf_counter() - start))
            picture = draw_predictions(frame, prediction, detector.categories, args.confidence)
            rate = f"{latencies[-1]:.0f} ms  {1000 / latencies[-1]:.1f} frames/s"
            sink.write(with_title(picture, rate))
    print(f"{len(latencies)} frames, median {statistics.median(latencies):.1f} ms a frame; video: {args.output}")
