"""Loads OpenCV when one of its names is first used: a server may lack libraries that it needs for windows.

from norton_det import opencv as cv2
"""

import os
from functools import cache
from typing import Any


@cache
def _loaded() -> Any:
    """Load OpenCV, which from here on prints nothing: our messages name the camera or the file."""
    os.environ.setdefault("QT_LOGGING_RULES", "*=false")
    try:
        import cv2
    except ImportError as error:
        raise OSError(
            f"OpenCV, which draws, cannot be loaded ({error}): install opencv-python-headless in place of"
            " opencv-python (then there are no windows), or the system's libraries, in Debian libgl1 and libglib2.0-0"
        ) from None
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # what Python and its tools ask every module
        raise AttributeError(name)
    return getattr(_loaded(), name)
