"""Shows frames, uint8 RGB (3, H, W), in a file or a window, and takes them ahead by threads."""

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Protocol, TypeVar

import av
from torch import Tensor

from norton_det.visualization.window import Window

T = TypeVar("T")
SLOWEST = Fraction(1, 1000)
"""The least frame rate that is written, in frames a second."""
CLOCK = Fraction(1, 1000)
"""Resolution in seconds of the times at which live frames are shown."""
AHEAD = 4
"""The most items that wait between two stages of work; of a live source only the newest one waits."""


def ahead(items: Iterable[T], newest_only: bool = False) -> Generator[T]:
    """Yield the same items, which a thread takes up to AHEAD items before they are asked for.

    With `newest_only` an item that was not asked for is dropped when the next one arrives. An exception in the
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
        except BaseException as error:  # any error is raised where items are asked for
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
    """Shows frames."""

    def show(self, frame: Tensor) -> bool:
        """Show a frame; return False if no more are wanted."""


class VideoFile:
    """Writes an MP4 file in H.264, which browsers and phones play; it takes frames of one size.

    The file gets its name once it is finished. An odd last row or column, which the codec does not allow, is cut off.
    With `is_live` each frame is shown at the time it came, otherwise all at `frame_rate`. Raises ValueError for a
    folder's name.
    """

    def __init__(self, path: Path, frame_rate: float, is_live: bool = False) -> None:
        if path.is_dir():
            raise ValueError(f"{path}: a folder, not a video to write")
        self._path, self._rate = path, max(Fraction(frame_rate), SLOWEST).limit_denominator(1001)
        self._tick = CLOCK if is_live else 1 / self._rate
        self._is_live = is_live
        self._unfinished = path.absolute().with_name(f".{path.stem}.unfinished.mp4")
        self._writing: tuple[av.container.OutputContainer, av.VideoStream] | None = None

    def show(self, frame: Tensor) -> bool:
        """Append a frame. Raises OSError naming the file if it cannot be written."""
        with self._named_errors():
            height, width = (side - side % 2 for side in frame.shape[1:])
            container, stream = self._writing = self._writing or self._start(width, height)
            pixels = frame[:, :height, :width].permute(1, 2, 0).contiguous().numpy()
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = self._next_tick(), self._tick
            container.mux(stream.encode(picture))
        return True

    def close(self) -> None:
        """Finish the file, so that it can be played. Raises OSError naming it if it cannot be written."""
        if self._writing is None:
            return
        with self._named_errors():
            container, stream = self._writing
            container.mux(stream.encode())
            container.close()
            self._unfinished.replace(self._path)

    def _start(self, width: int, height: int) -> tuple[av.container.OutputContainer, av.VideoStream]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        container = av.open(self._unfinished, "w", options={"movflags": "faststart"})
        stream = container.add_stream("libx264", self._rate, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = self._tick
        self._started, self._shown = time.monotonic(), -1
        return container, stream

    def _next_tick(self) -> int:
        now = int((time.monotonic() - self._started) / self._tick) if self._is_live else 0
        self._shown = max(now, self._shown + 1)
        return self._shown

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except av.FFmpegError as error:
            self._writing = None
            self._unfinished.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(self._path)) from None


@contextmanager
def open_screen(output: Path | None, frame_rate: float, is_live: bool = False) -> Iterator[Screen]:
    """Open a file, or a window if none is named, and close it at the end of the context, whatever happens."""
    screen = VideoFile(output, frame_rate, is_live) if output else Window("norton_det")
    try:
        yield screen
    finally:
        screen.close()
