"""Reading an image file."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_image


def read_image(path: str | Path) -> Tensor:
    """The `tv_tensors.Image` (3, H, W), uint8 RGB, in a file; grey, palette and CMYK images are converted.

    Raises:
        ValueError: it is no image that can be read.
        FileNotFoundError: it is not there.
    """
    try:
        with Image.open(path) as file:
            pixels: Tensor = to_image(file.convert("RGB"))
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error
    return pixels


class ImageFiles(Sequence[Tensor]):
    """Image files as float RGB tensors (3, H, W) in 0 to 1, each read when it is asked for."""

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


def find_images(folder: Path, count: int) -> list[Path]:
    """The first images of a folder by name, at most `count`. Raises ValueError where there are none."""
    suffixes = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{folder}: no folder with images ({', '.join(suffixes)})")
    return paths[:count]
