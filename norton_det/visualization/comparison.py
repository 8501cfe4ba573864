"""Compares detectors on the frames of a video: what each finds and how fast, side by side in one picture."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from norton_det.analysis.latency import Latency
from norton_det.deploy.demo import DemoDetector
from norton_det.in_flight import calls_at_once, in_order
from norton_det.names import number_of
from norton_det.visualization.draw import draw_predictions, side_by_side


@dataclass(frozen=True)
class Found:
    """Holds a frame, uint8 RGB (3, H, W), and what each detector found on it in how many milliseconds.

    Where calls share the cores these are the call's, divided by how many ran at a time.
    """

    frame: Tensor
    predictions: list[dict[str, Tensor]]
    milliseconds: list[float]


def detect(detectors: Sequence[DemoDetector], frames: Iterable[Tensor], device: torch.device) -> Iterator[Found]:
    """Run each detector on each frame, uint8 RGB (3, H, W); several frames at a time if all detectors allow it."""
    at_once = min(calls_at_once(detector.detect) for detector in detectors)

    def found(frame: Tensor) -> Found:
        predictions, milliseconds = [], []
        for detector in detectors:
            started = time.perf_counter()
            [prediction] = detector.detect([frame.to(device) / 255])
            predictions.append({key: value.cpu() for key, value in prediction.items()})
            milliseconds.append(1000 * (time.perf_counter() - started) / at_once)
        return Found(frame, predictions, milliseconds)

    return in_order(found, frames, at_once)


def draw_found(detectors: Sequence[DemoDetector], found: Found, recent: Sequence[float], confidence: float) -> Tensor:
    """Draw the frame once for each detector, side by side, under the detector's name, latency and frame rate.

    The last of several also shows its speed relative to the first. `recent` are the milliseconds to show, one for
    each detector.
    """
    pictures, titles = [], []
    for detector, prediction, milliseconds in zip(detectors, found.predictions, recent, strict=True):
        categories, keypoints = detector.detect.categories, getattr(detector.detect, "keypoints", None)
        shown = draw_predictions(found.frame, prediction, categories, confidence, keypoints)
        pictures.append(shown if detector.is_trained else found.frame)
        titles.append(f"{detector.name}  {milliseconds:.0f} ms  {1000 / milliseconds:.1f} frames/s")
    if len(detectors) > 1:
        titles[-1] += f"  {recent[0] / recent[-1]:.2f}x"
    return side_by_side(pictures, titles)


def summarise(detectors: Sequence[DemoDetector], latencies: Sequence[Sequence[float]], seconds: float) -> str:
    """Return lines that say how fast all frames went in `seconds`, and each detector by its `latencies` on frames."""
    count = len(latencies[0])
    lines = [f"{number_of(count, 'frame')}, {count / seconds:.1f} frames/s from end to end"]
    if count:
        found = [Latency.of(measured) for measured in latencies]
        for detector, latency in zip(detectors, found, strict=True):
            lines.append(f"{detector.name}: median {latency.median:.1f} ms, p95 {latency.p95:.1f} ms")
        if len(found) > 1:
            lines.append(f"speed-up: {found[0].median / found[-1].median:.2f}x")
    return "\n".join(lines)
