"""Reads and writes image files.

A picture is always read upright, as its EXIF data say: training, evaluation, recovery and the demos see the same
picture that an annotation tool in a browser shows.
"""

import errno
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import to_image, to_pil_image

from norton_det.files import atomic_path

LONGEST_SHOWN = 1333
"""The longest side of a picture in pixels: the memory of masks grows with its square."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SLIMMEST = 64
"""The largest ratio of a photo's longer to its shorter side; a detector's resize leaves nothing of a slimmer one."""

FAILURES = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
"""Errors of the system, which say nothing about the file that was to be read."""

_TURNS = dict(
    enumerate(
        [
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ],
        start=2,
    )
)
"""How a picture of each EXIF orientation is set upright."""
_ON_THE_SIDE = range(5, 9)


class DamagedImageError(ValueError):
    """Raised for an image file that cannot be read; the message names it."""


def read_image(path: str | Path) -> Tensor:
    """Read an image file, upright, as a `tv_tensors.Image` (3, H, W), uint8 RGB.

    Grey, palette, CMYK and 16-bit images are converted.

    Raises:
        DamagedImageError: the file is no image that can be read.
        FileNotFoundError: the file is not there.
    """
    with _opened(path) as file:
        pixels: Tensor = to_image(_as_rgb(file))
    return pixels


def read_photo(path: str | Path, longest: int) -> tuple[Tensor, float]:
    """Read an image to look at, as `read_image` does, but with sides of at most `longest` pixels.

    Returns the image, and how many of the file's pixels make one of its own, along a side. Raises what `read_image`
    raises, and ValueError for an image that is too slim.
    """
    with _opened(path) as file:
        side = max(file.size)
        if side > SLIMMEST * min(file.size):
            raise ValueError(f"{file.width}x{file.height} pixels, one side more than {SLIMMEST} times the other")
        file.draft("RGB", (longest, longest))  # of a large JPEG only a smaller version is decoded
        picture = _as_rgb(file)
        picture.thumbnail((longest, longest))
        pixels: Tensor = to_image(picture)
    return pixels, side / max(picture.size)


@dataclass(frozen=True)
class Header:
    """Holds an image file's header: (height, width) of its pixels as stored, and EXIF's orientation."""

    size: tuple[int, int]
    orientation: int

    @property
    def is_turned(self) -> bool:
        """Tell whether the stored pixels must be turned or mirrored to be upright."""
        return self.orientation in _TURNS

    @property
    def upright(self) -> tuple[int, int]:
        """Return (height, width) of the picture as it is read, upright."""
        height, width = self.size
        return (width, height) if self.orientation in _ON_THE_SIDE else self.size


def read_header(path: str | Path, *, pixels: bool = False) -> Header:
    """Read an image file's header; with `pixels` the whole file is read, which finds damage beyond the header.

    Raises what `read_image` raises.
    """
    with _opened(path) as file:
        header = Header((file.height, file.width), _orientation(file))
        if pixels:
            _as_rgb(file)
    return header


def describe_misfit(path: Path, header: Header, expected: tuple[int, ...]) -> str:
    """Return a line that says how an image differs from the (height, width) that the annotations give."""
    told = f"the annotations say {expected[1]} x {expected[0]}"
    height, width = header.upright
    if header.size == expected and header.is_turned:
        return (
            f"{path}: {told}, as its pixels lie there, but its EXIF orientation {header.orientation} turns it to"
            f" {width} x {height}: write images and annotations anew, upright"
        )
    return f"{path}: {width} x {height} pixels, but {told}"


def write_png(path: Path, picture: Tensor) -> None:
    """Write a picture, uint8 RGB (3, H, W), atomically."""
    with atomic_path(path) as temporary:
        to_pil_image(picture).save(temporary, format="png")


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as file:
            yield file
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {str(path)!r}") from None
    except UnidentifiedImageError:
        raise DamagedImageError(f"{path}: not a readable image (Pillow does not know its format)") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno in FAILURES:
            raise
        raise DamagedImageError(f"{path}: not a readable image ({error})") from error


def _orientation(file: Image.Image) -> int:
    """Return EXIF's orientation: 1 for a picture stored upright, and 1 if the data are broken, as in browsers."""
    try:
        number = Image.Image.getexif(file).get(ExifTags.Base.Orientation, 1)  # a PNG's own method decodes all of it
    except Exception:  # broken bytes raise errors of many kinds
        return 1
    return number if isinstance(number, int) else 1


def _as_rgb(file: Image.Image) -> Image.Image:
    orientation = _orientation(file)
    if file.mode in ("I", "F"):
        raise ValueError("32 bits a pixel, which do not say what value is white")
    if file.mode.startswith("I;16"):  # `convert` would cut its values off at 255
        file = Image.fromarray((np.asarray(file) / 257).astype(np.uint8))
    picture = file.convert("RGB")
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


class ImageFiles(Sequence[Tensor]):
    """Reads image files as float RGB tensors (3, H, W) in 0 to 1, each when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> "ImageFiles": ...

    def __getitem__(self, index: int | slice) -> "Tensor | ImageFiles":
        if isinstance(index, slice):
            return ImageFiles(self.paths[index])
        return read_image(self.paths[index]).as_subclass(Tensor).float() / 255


def is_image_name(path: str | Path) -> bool:
    """Tell whether a file is an image by its name; hidden files, which macOS and editors leave, are not."""
    path = Path(path)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def find_images(folder: Path, count: int | None = None) -> list[Path]:
    """Return at most `count` images of a folder (None: all), evenly spaced by name, since neighbours are often alike.

    Raises ValueError if there are none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: not a folder, expected one with images")
    paths = sorted(path for path in folder.iterdir() if is_image_name(path))
    if not paths:
        known = ", ".join(IMAGE_SUFFIXES)
        raise ValueError(f"{folder}: no images ({known}) in this folder; subfolders are not looked into")
    return evenly_spaced(paths, len(paths) if count is None else count)


def evenly_spaced(paths: Sequence[Path], count: int) -> list[Path]:
    """Return at most `count` of the paths, evenly spaced."""
    taken = min(len(paths), count)
    return [paths[place * len(paths) // taken] for place in range(taken)]


def picture_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return a file name for the picture of each image; images with equal names get their folders' names too."""
    stems = Counter(path.stem for path in paths)
    return {path: f"{path.stem if stems[path.stem] == 1 else '_'.join(path.parts).strip('/_')}.png" for path in paths}
