"""A look at the files that a dataset's images are in, before hours are spent on the first of them."""

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
"""Seconds before a bar is drawn."""


@dataclass(frozen=True)
class Inspection:
    """What is wrong with a dataset's image files, a line each, and how many sound ones their EXIF data turn."""

    missing: Sequence[str]
    damaged: Sequence[str]
    misfits: Sequence[str]
    turned: int

    def problems(self, tolerated: int = 0) -> list[str]:
        """The lines for which a run is refused; it does with `tolerated` images that are damaged."""
        damaged = self.damaged if len(self.damaged) > tolerated else ()
        return [*self.missing, *self.misfits, *damaged]

    def notes(self, name: str) -> list[str]:
        """The lines that are told of the images of the dataset of a name."""
        told = "images that are turned upright, as their EXIF orientation says"
        return [f"{name}: {told}: {self.turned}"] if self.turned else []


def inspect_images(dataset: CocoDataset, *, pixels: bool = False, show_progress: bool = True) -> Inspection:
    """Look at every image's file: whether it is there, and an image of the size that the annotations say.

    Only headers are read, or all `pixels`, which takes as long as an epoch's reading.
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
    """A hint at a file of the folder that a missing one may be: without its folders, or in other letters."""
    candidates = [folder / path.name, *(path.parent.iterdir() if path.parent.is_dir() else ())]
    alike = [other for other in candidates if other.is_file() and _plain(other.name) == _plain(path.name)]
    return f"; there is {str(alike[0])!r}" if alike else ""


def _plain(name: str) -> str:
    """A name as systems compare it that do not tell capitals and kinds of accents apart."""
    return unicodedata.normalize("NFC", name).casefold()


def require_images(dataset: CocoDataset, name: str, tolerated: int = 0, show_progress: bool = True) -> None:
    """Tell how many images EXIF data turn; raise ValueError for files that a run could not read, see `Inspection`."""
    found = inspect_images(dataset, show_progress=show_progress)
    if problems := found.problems(tolerated):
        raise ValueError(and_others(problems))
    for line in found.notes(name):
        log.info(line)
