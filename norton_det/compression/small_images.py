"""Shrinks images that are looked at many times to the size that a detector needs, once, and keeps them on disk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as image_ops


class SmallImages:
    """Holds a sequence's images (3, H, W), float in 0 to 1, of 8 bits a channel; a large one is read there once.

    An image is shrunk until its shorter side and its longer side are at most `shorter` and `longer` pixels long, as a
    detector's transform does; small images keep their size. Copies lie in a folder; memory holds only what is asked
    for.
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
