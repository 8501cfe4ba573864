"""Splits the photos of a folder into those on which a detector is fitted and those held back to measure on."""

import logging
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from norton_det.data.images import DamagedImageError, ImageFiles, find_images, read_photo

log = logging.getLogger(__name__)
LEAST = 12
"""The fewest photos on which anything can be measured."""
HELD_BACK = 4
"""One photo in so many is held back."""
_THUMBNAIL = 512
"""Pixels of the longer side at which a photo is tried: of a large JPEG only a smaller version is decoded."""


@dataclass(frozen=True)
class Photos:
    """Holds photos without labels.

    Attributes:
        fitted: the photos for recovery, sensitivities and int8's ranges.
        held: the photos on which agreement and time are measured; nothing else sees these.
    """

    fitted: ImageFiles
    held: ImageFiles


def read_photos(folder: Path, count: int) -> Photos:
    """Split at most `count` photos, taken evenly from a folder; a warning names broken ones, which are left out.

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
        told = f"{folder}: {len(sound)} photos that can be read, expected at least {LEAST}"
        raise ValueError(f"{told}; subfolders are not looked into")
    held = sound[HELD_BACK - 1 :: HELD_BACK]
    fitted = [path for number, path in enumerate(sound, start=1) if number % HELD_BACK]
    return Photos(ImageFiles(fitted), ImageFiles(held))
