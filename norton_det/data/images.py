"""Reading an image file."""

from pathlib import Path

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
