"""Checks the image files of a dataset before a long run starts on them."""

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from norton_det.data.coco import CocoDataset
from norton_det.data.images import DamagedImageError, describe_misfit, read_header
from norton_det.data.reading import and_others

log = logging.getLogger(__name__)
PATIENCE = 2.0
"""Seconds before a progress bar is drawn."""


@dataclass(frozen=True)
class Inspection:
    """Holds what is wrong with a dataset's image files, a line each, and how many sound ones their EXIF data turn."""

    missing: Sequence[str]
    damaged: Sequence[str]
    misfits: Sequence[str]
    turned: int

    def problems(self, tolerated: int = 0) -> list[str]:
        """Return the lines for which a run is refused; up to `tolerated` damaged images are no reason."""
        damaged = self.damaged if len(self.damaged) > tolerated else ()
        return [*self.missing, *self.misfits, *damaged]

    def notes(self, name: str, tolerated: int = 0) -> list[str]:
        """Return the lines to tell about the images of the dataset called `name` that are no reason to refuse it."""
        told = "images that are turned upright, as their EXIF orientation says"
        turned = [f"{name}: {told}: {self.turned}"] if self.turned else []
        return [*turned, *(self.damaged if len(self.damaged) <= tolerated else ())]


def inspect_images(dataset: CocoDataset, *, pixels: bool = False, show_progress: bool = True) -> Inspection:
    """Check that every image's file is there, and is an image of the size that the annotations say.

    Only headers are read, or with `pixels` whole files, which takes as long as reading an epoch.
    """
    missing: list[str] = []
    damaged: list[str] = []
    misfits: list[str] = []
    turned = 0
    bar: Any = tqdm(
        zip(dataset.paths, dataset.sizes.tolist(), strict=True),
        desc="look at images",
        total=len(dataset),
        delay=PATIENCE,
        leave=False,
        disable=not show_progress,
    )
    for path, (height, width) in bar:
        try:
            header = read_header(path, pixels=pixels)
        except FileNotFoundError as error:
            missing.append(str(error) + ("" if missing else _beside(path, dataset.folder)))
        except DamagedImageError as error:
            damaged.append(str(error))
        else:
            if header.upright != (height, width):
                misfits.append(describe_misfit(path, header, (height, width)))
            else:
                turned += header.is_turned
    return Inspection(missing, damaged, misfits, turned)


def _beside(path: Path, folder: Path) -> str:
    """Return a hint at the file that a missing one may be: in another folder, or with other capitals or accents."""
    candidates = [folder / path.name, *(path.parent.iterdir() if path.parent.is_dir() else ())]
    alike = [other for other in candidates if other.is_file() and _plain(other.name) == _plain(path.name)]
    return f"; there is {str(alike[0])!r}" if alike else ""


def _plain(name: str) -> str:
    """Return a name without the differences of capitals and of encoded accents that some file systems ignore."""
    return unicodedata.normalize("NFC", name).casefold()


def require_images(dataset: CocoDataset, name: str, tolerated: int = 0, show_progress: bool = True) -> None:
    """Raise ValueError for files that a run could not read (see `Inspection`), and log how many EXIF data turn."""
    found = inspect_images(dataset, show_progress=show_progress)
    if problems := found.problems(tolerated):
        raise ValueError(and_others(problems))
    for line in found.notes(name):
        log.info(line)
