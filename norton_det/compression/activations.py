"""Keeps feature maps of many images on disk: only one batch stands in memory."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class ActivationFile:
    """A file of float32 maps (C, H, W) of one shape, one for each image; they are appended in order and read in any.

    A map is stored as (H, W, C), and comes back channels_last.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")
        self.shape: tuple[int, int, int] = (0, 0, 0)
        self.count = 0
        self._channels: Sequence[int] | None = None

    def select(self, channels: Sequence[int]) -> "ActivationFile":
        """Return a view of the same file that reads only the given channels."""
        view = copy.copy(self)
        view._channels = channels
        return view

    def append(self, maps: Tensor) -> None:
        """Append maps (N, C, H, W)."""
        self.shape = (maps.shape[1], maps.shape[2], maps.shape[3])
        self._file.seek(0, os.SEEK_END)
        self._file.write(np.ascontiguousarray(maps.detach().cpu().permute(0, 2, 3, 1).numpy()).data)
        self.count += len(maps)

    def read(self, images: Sequence[int]) -> Tensor:
        """Read the maps of the given images, (N, C, H, W)."""
        channels, height, width = self.shape
        batch = np.empty((len(images), height, width, channels), np.float32)
        for place, image in enumerate(images):
            self._file.seek(4 * channels * height * width * image)
            self._file.readinto(batch[place].data)
        maps = torch.from_numpy(batch).permute(0, 3, 1, 2)
        return maps if self._channels is None else maps[:, self._channels]

    def delete(self) -> None:
        """Close the file and remove it."""
        self._file.close()
        self._path.unlink()
