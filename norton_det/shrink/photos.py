"""The photos of a folder: those that a detector is fitted on, and those that are held back to measure on."""

import logging
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from norton_det.data.images import DamagedImageError, ImageFiles, find_images, read_photo

log = logging.getLogger(__name__)
LEAST = 12
"""Photos, below which nothing can be measured."""
HELD_BACK = 4
"""One photo in so many is held back."""
_THUMBNAIL = 512
"""Pixels that a photo is tried at: of a large JPEG less is decoded."""


@dataclass(frozen=True)
class Photos:
    """Photos without labels.

    Attributes:
        fitted: what recovery, sensitivities and int8's ranges are taken from.
        held: what agreement and time are measured on; nothing else sees these.
    """

    fitted: ImageFiles
    held: ImageFiles


def read_photos(folder: Path, count: int) -> Photos:
    """Split at most `count` photos, evenly from all over a folder; broken ones are named in a warning, left out.

    Raises ValueError for a folder without images, or with fewer than LEAST that can be read.
    """
    sound: list[Path] = []
    for path in tqdm(find_images(folder, count), desc="look at photos"):
        try:
            read_photo(path, _THUMBNAIL)
            sound.append(path)
        except (DamagedImageError, ValueError) as error:
            log.warning("passed over: %s", error)
    if len(sound) < LEAST:
        raise ValueError(f"{folder}: {len(sound)} photos that can be read, expected at least {LEAST}")
    held = sound[HELD_BACK - 1 :: HELD_BACK]
    return Photos(ImageFiles([path for path in sound if path not in held]), ImageFiles(held))
