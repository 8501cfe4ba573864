"""Feature maps of many images, kept on disk: what stands in memory is one batch."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class ActivationFile:
    """Maps (C, H, W) of one shape, float32, one an image, in a file; appended in order, read in any.

    They lie (H, W, C), so that a few rows of a map are one piece of the file, and come back channels_last.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b", buffering=0)
        self.shape: tuple[int, int, int] = (0, 0, 0)
        self.count = 0
        self._channels: Sequence[int] | None = None

    def select(self, channels: Sequence[int]) -> "ActivationFile":
        """The same file, of whose maps only the given channels are read."""
        view = copy.copy(self)
        view._channels = channels
        return view

    def append(self, maps: Tensor) -> None:
        """Add maps (N, C, H, W)."""
        self.shape = (maps.shape[1], maps.shape[2], maps.shape[3])
        self._file.write(np.ascontiguousarray(maps.detach().cpu().permute(0, 2, 3, 1).numpy()).data)
        self.count += len(maps)

    def read(self, images: Sequence[int], rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """The maps of the given images, (N, C, h, w), a window of each where rows and columns are given."""
        channels, height, width = self.shape
        first, last, _ = rows.indices(height)
        line = width * channels
        batch = np.empty((len(images), last - first, width, channels), np.float32)
        for place, image in enumerate(images):
            self._file.seek(4 * line * (image * height + first))
            self._file.readinto(batch[place].data)
        maps = torch.from_numpy(batch)[:, :, columns].permute(0, 3, 1, 2)
        return maps if self._channels is None else maps[:, self._channels]

    def delete(self) -> None:
        """Close the file and remove it."""
        self._file.close()
        self._path.unlink()
