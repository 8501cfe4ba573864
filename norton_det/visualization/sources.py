"""Reads frames, uint8 RGB (3, H, W), from a video file, a network stream or a camera."""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from norton_det import opencv as cv2

log = logging.getLogger(__name__)
FRAME_RATE = 25.0
"""Frames a second of a source that does not say it."""
PATIENCE = 20.0
"""Seconds that an address may take to answer, and a stream to go on."""
WHOLE = 0.95
"""The least share of the promised frames that a whole video has, as some promise one or two too many."""


class Video:
    """Reads the frames of a file or of an address (http, https, rtsp, ..), upright as the phone was held.

    `is_live` says that an address has no end. Damaged frames are left out, and a warning tells if many are missing.
    Raises ValueError naming the source if it cannot be opened, has no pictures, or has no frame that can be read.
    """

    def __init__(self, source: str | Path) -> None:
        source = str(source)
        is_address = "://" in source
        self.name = re.sub("//[^/@]*@", "//", source)  # without a password
        if not is_address and not os.path.isfile(source):
            raise ValueError(f"no video file {source!r}")
        try:
            self._container = av.open(
                source if is_address else os.path.abspath(source),  # FFmpeg takes 12:30.mp4 for an address
                timeout=PATIENCE if is_address else None,
                options={"rtsp_transport": "tcp"} if source.startswith("rtsp") else {},
            )
        except av.FFmpegError as error:
            raise ValueError(f"{self.name}: not a video that can be read ({_told(error)})") from None
        if not self._container.streams.video:
            raise ValueError(f"{self.name}: no video: it has no pictures")
        self._stream = self._container.streams.video[0]
        self.frame_rate = float(self._stream.average_rate or FRAME_RATE)
        self.is_live = is_address and self._container.duration is None
        self._reason = ""

    def __iter__(self) -> Iterator[Tensor]:
        seconds = (self._container.duration or 0) / av.time_base
        promised = self._stream.frames or seconds * self.frame_rate
        count = 0
        self._stream.thread_type = "AUTO"
        for packet in self._packets():
            try:
                frames = self._stream.decode(packet)
            except av.FFmpegError as error:
                self._reason = f" ({_told(error)})"
                continue
            for frame in frames:
                count += 1
                yield _upright(frame)
        self._container.close()
        if not count:
            raise ValueError(f"{self.name}: no frame could be read{self._reason}")
        if self.is_live:
            log.warning("%s: ended%s", self.name, self._reason)
        elif count < WHOLE * promised:
            missing = f"damaged, {count} of about {promised:.0f} frames could be read"
            log.warning("%s: %s%s", self.name, missing, self._reason)

    def _packets(self) -> Iterator["av.Packet[av.VideoStream] | None"]:
        """Yield the packets to decode; if they break off, None comes last, for which the decoder returns the rest."""
        try:
            yield from self._container.demux(self._stream)
        except av.FFmpegError as error:
            self._reason = f" ({_told(error)})"
            yield None


class Camera:
    """Reads the frames of a camera, by its number. Raises ValueError if it cannot be opened."""

    is_live = True

    def __init__(self, number: int) -> None:
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise ValueError(f"camera {number}: not there, or in use by another program")
        self.frame_rate: float = self._capture.get(cv2.CAP_PROP_FPS) or FRAME_RATE

    def __iter__(self) -> Iterator[Tensor]:
        while (found := self._capture.read())[0]:
            yield torch.from_numpy(cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB)).permute(2, 0, 1)
        self._capture.release()


def _upright(frame: av.VideoFrame) -> Tensor:
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _told(error: av.FFmpegError) -> str:
    if isinstance(error, av.error.ExitError):
        return f"no answer within {PATIENCE:.0f} seconds"
    return str(error.strerror)
