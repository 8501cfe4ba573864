"""Images that are looked at again and again: made no larger than a detector needs them, once, and kept on disk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as image_ops


class SmallImages:
    """The images (3, H, W) in 0 to 1 of a sequence, float, in 8 bits a channel; a large one is read from it once.

    Sides longer than a shorter and a longer one, in pixels, are shrunk until one of both fits, as a detector's
    transform does; small images keep their size. Copies lie in a folder, memory holds what is asked for.
    """

    def __init__(self, images: Sequence[Tensor], shorter: float, longer: float, folder: Path) -> None:
        self._images, self._shorter, self._longer, self._folder = images, shorter, longer, folder

    def __getitem__(self, index: int) -> Tensor:
        path = self._folder / f"{index}.npy"
        if not path.exists():
            np.save(path, self._shrunk(self._images[index]).mul(255).round().byte().cpu().numpy())
        return torch.from_numpy(np.load(path)).float() / 255

    def _shrunk(self, image: Tensor) -> Tensor:
        sides = image.shape[1:]
        scale = min(self._shorter / min(sides), self._longer / max(sides))
        if scale >= 1:
            return image
        small: Tensor = image_ops.resize(image, [max(1, round(scale * side)) for side in sides])
        return small.clamp(0, 1)
