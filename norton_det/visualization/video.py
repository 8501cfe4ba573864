"""Frames in, frames out: a video file or a camera as an iterator, a writer as a context manager. Frames are RGB."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import torch
from torch import Tensor


class VideoSource:
    """The frames of a file or a camera, uint8 RGB (3, H, W).

    `source` is a path or a camera's number. Raises ValueError naming it where it cannot be opened or is empty.
    """

    def __init__(self, source: Path | int) -> None:
        if isinstance(source, Path) and not source.is_file():
            raise ValueError(f"no video file {str(source)!r}")
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            raise ValueError(f"{self.name}: cannot be opened as a video")
        self.frame_rate = self._capture.get(cv2.CAP_PROP_FPS) or 25.0

    def __iter__(self) -> Iterator[Tensor]:
        read = False
        while True:
            there, frame = self._capture.read()
            if not there:
                break
            read = True
            yield torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)
        self._capture.release()
        if not read:
            raise ValueError(f"{self.name}: no frame could be read")


class VideoSink:
    """An MP4 file that takes uint8 RGB frames (3, H, W) of one size."""

    def __init__(self, path: Path, frame_rate: float) -> None:
        self._path, self._frame_rate = path, frame_rate
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: Tensor) -> None:
        """Append a frame. Raises ValueError where the file cannot be written."""
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _, height, width = frame.shape
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._path), codec, self._frame_rate, (width, height))
            if not self._writer.isOpened():
                raise ValueError(f"{self._path}: cannot be written as a video")
        self._writer.write(cv2.cvtColor(frame.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file, so that it can be played."""
        if self._writer is not None:
            self._writer.release()


@contextmanager
def video_sink(path: Path, frame_rate: float) -> Iterator[VideoSink]:
    """A `VideoSink` that is finished whatever happens."""
    sink = VideoSink(path, frame_rate)
    try:
        yield sink
    finally:
        sink.close()
