"""Shows frames, uint8 RGB (3, H, W), in a window."""

import os
import sys

import torch
from torch import Tensor

from norton_det import opencv as cv2

QUIT_KEYS = (ord("q"), 27)


class Window:
    """A window that q and Esc close. Raises ValueError if there is no display, or OpenCV has no windows."""

    def __init__(self, title: str) -> None:
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise ValueError("there is no display for a window: name a file with --output")
        self._title = title
        self._shape: torch.Size | None = None
        try:
            cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_GUI_NORMAL)
        except cv2.error:
            raise ValueError(
                "this OpenCV has no windows: name a file with --output, or install opencv-python in place of"
                " opencv-python-headless"
            ) from None

    def show(self, frame: Tensor, until_key: bool = False) -> bool:
        """Show a frame, with `until_key` until a key is pressed; return False if a quit key was pressed or the window
        was closed."""
        if frame.shape != self._shape:
            self._shape = frame.shape
            cv2.resizeWindow(self._title, *frame.shape[:0:-1])
        cv2.imshow(self._title, frame.permute(1, 2, 0).flip(-1).contiguous().numpy())
        key: int = cv2.waitKey(1)
        while until_key and key < 0 and self._is_open():
            key = cv2.waitKey(50)
        return key & 0xFF not in QUIT_KEYS and self._is_open()

    def close(self) -> None:
        """Close the window."""
        cv2.destroyWindow(self._title)

    def _is_open(self) -> bool:
        return bool(cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1)
