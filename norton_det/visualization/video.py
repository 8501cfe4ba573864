"""Frames in, frames out: a video file or a camera as an iterator, a file or a window to show them in.

Frames are uint8 RGB (3, H, W).
"""

import logging
import os
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Protocol, TypeVar

import cv2
import torch
from torch import Tensor

log = logging.getLogger(__name__)
T = TypeVar("T")
AHEAD = 4
"""Items that wait between two stages of work; of a live source it is the newest alone."""
QUIT_KEYS = (ord("q"), 27)
ATTEMPTS = 30
"""Frames of a file that fail in a row before it is taken to have ended."""
WHOLE = 0.95
"""Share of the frames that a file promises, as some promise one or two too many."""


def silence_opencv() -> None:
    """Keep back what OpenCV, FFmpeg and Qt print about back ends, packets, fonts: our messages name the file."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("QT_LOGGING_RULES", "*=false")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class VideoSource:
    """The frames of a file or a camera; damaged ones are left out, and a warning tells where many are missing.

    `source` is a path or a camera's number; `is_live` tells a camera. Raises ValueError naming it where it cannot
    be opened, or has no frame that can be read.
    """

    def __init__(self, source: Path | int) -> None:
        if isinstance(source, Path) and not source.is_file():
            raise ValueError(f"no video file {str(source)!r}")
        self.is_live = isinstance(source, int)
        self.name = f"camera {source}" if self.is_live else str(source)
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            reason = "not there, or in use by another program" if self.is_live else "not a video that can be read"
            raise ValueError(f"{self.name}: {reason}")
        self.frame_rate = self._capture.get(cv2.CAP_PROP_FPS) or 25.0

    def __iter__(self) -> Iterator[Tensor]:
        promised = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        count = failures = 0
        while failures < (1 if self.is_live else ATTEMPTS):
            there, frame = self._capture.read()
            if not there:
                failures += 1
                continue
            failures = 0
            count += 1
            yield torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)
        self._capture.release()
        if not count:
            raise ValueError(f"{self.name}: no frame could be read")
        if count < WHOLE * promised:
            log.warning("%s: damaged, %d of about %.0f frames could be read", self.name, count, promised)


def ahead(items: Iterable[T], newest_only: bool = False) -> Generator[T]:
    """The same items, taken by a thread of their own up to AHEAD before they are asked for.

    With `newest_only` an item that nobody has asked for is dropped when the next one is there. An exception in the
    thread is raised here. Closing the iterator waits for the thread's end.
    """
    waiting: Queue[tuple[list[T], BaseException | None]] = Queue(1 if newest_only else AHEAD)
    stopped = Event()

    def put(item: list[T], error: BaseException | None = None) -> None:
        if newest_only and item:
            with suppress(Empty):
                waiting.get_nowait()
        while not stopped.is_set():
            with suppress(Full):
                return waiting.put((item, error), timeout=0.1)

    def take() -> None:
        try:
            for item in items:
                put([item])
                if stopped.is_set():
                    return
            put([])
        except BaseException as error:  # whatever it is, it belongs to the one who waits
            put([], error)

    thread = Thread(target=take, daemon=True)
    thread.start()
    try:
        while True:
            found, error = waiting.get()
            if error is not None:
                raise error
            if not found:
                return
            yield found[0]
    finally:
        stopped.set()
        thread.join()


class Screen(Protocol):
    """Where frames are shown."""

    def show(self, frame: Tensor) -> bool:
        """Take a frame; False: whoever looks wants no more."""


class VideoFile:
    """An MP4 file that takes frames of one size; it bears its name once it is finished.

    Raises ValueError for a folder's name.
    """

    def __init__(self, path: Path, frame_rate: float) -> None:
        if path.is_dir():
            raise ValueError(f"{path}: a folder, not a video to write")
        self._path, self._frame_rate = path, frame_rate
        self._unfinished = path.with_name(f".{path.stem}.unfinished.mp4")
        self._writer: cv2.VideoWriter | None = None

    def show(self, frame: Tensor) -> bool:
        """Append a frame. Raises ValueError where the file cannot be written."""
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _, height, width = frame.shape
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._unfinished), codec, self._frame_rate, (width, height))
            if not self._writer.isOpened():
                raise ValueError(f"{self._path}: cannot be written as a video")
        self._writer.write(_as_bgr(frame))
        return True

    def close(self) -> None:
        """Finish the file, so that it can be played. Raises ValueError where the disk did not take it."""
        if self._writer is not None:
            self._writer.release()
            if not cv2.VideoCapture(str(self._unfinished)).isOpened():
                self._unfinished.unlink(missing_ok=True)
                raise ValueError(f"{self._path}: could not be written; is the disk full?")
            self._unfinished.replace(self._path)


class Window:
    """A window; q and Esc close it. Raises ValueError where there is no display."""

    def __init__(self, title: str) -> None:
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise ValueError("there is no display for a window: name a file with --output")
        self._title = title
        self._shape: torch.Size | None = None
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_GUI_NORMAL)

    def show(self, frame: Tensor, until_key: bool = False) -> bool:
        """Show a frame, until a key is pressed where that is asked for; False where it was one to quit, or the window
        was closed."""
        if frame.shape != self._shape:
            self._shape = frame.shape
            cv2.resizeWindow(self._title, *frame.shape[:0:-1])
        cv2.imshow(self._title, _as_bgr(frame))
        key = cv2.waitKey(1)
        while until_key and key < 0 and self._is_open():
            key = cv2.waitKey(50)
        return key & 0xFF not in QUIT_KEYS and self._is_open()

    def close(self) -> None:
        """Close it."""
        cv2.destroyWindow(self._title)

    def _is_open(self) -> bool:
        return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1


@contextmanager
def open_screen(output: Path | None, frame_rate: float) -> Iterator[Screen]:
    """A file, or without one a window, that is finished whatever happens."""
    screen = VideoFile(output, frame_rate) if output else Window("norton_det")
    try:
        yield screen
    finally:
        screen.close()


def _as_bgr(frame: Tensor) -> cv2.typing.MatLike:
    return cv2.cvtColor(frame.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2BGR)
