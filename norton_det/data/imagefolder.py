"""Reads classification data in ImageNet's layout: one folder for each class."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from norton_det.data.images import is_image_name, read_image
from norton_det.data.loaders import TrainingBatchSampler, evaluation_loader, training_batches
from norton_det.data.transforms import seeded

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_EVALUATION_RESIZE = 256 / 224


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Reads the images `<folder>/<class>/*.jpg` and the like, ordered by class and name.

    `dataset[index]`, or `dataset[epoch, index]`, is an image (3, size, size), float32, normalised with ImageNet's
    mean and standard deviation, and its label, an index into `classes`. Training crops a random part (8 to 100 % of
    the area) and flips, drawn from (seed, epoch, index); otherwise the shorter side is resized to 256/224 of `size`
    and the middle is cropped.

    Args:
        folder: the folder that holds one folder for each class.
        training: whether to augment, as said above.
        size: side of the square images, in pixels.
        seed: the augmentation's seed.

    Attributes:
        classes: the names of the folders, sorted.

    Raises:
        ValueError: the folder is not there, holds no class, or a class has no images; or the size is below 1.
    """

    def __init__(self, folder: Path, training: bool, size: int = 224, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"images of {size} pixels, expected at least 1")
        if not folder.is_dir():
            raise ValueError(f"no folder {str(folder)!r}, expected {folder}/<class>/*.jpg")
        transform = _training_transform(size) if training else _evaluation_transform(size)
        try:
            self._images = _VisibleFolders(folder, transform, loader=read_image, is_valid_file=is_image_name)
        except FileNotFoundError as error:
            raise ValueError(f"{folder}: expected {folder}/<class>/*.jpg: {error}") from None
        self.classes: list[str] = self._images.classes
        self._seed = seed

    def __len__(self) -> int:
        return len(self._images)

    def names_digest(self) -> str:
        """Return a digest of the images' names, with their classes' names: other names have another digest."""
        names = (str(Path(path).relative_to(self._images.root)) for path, _ in self._images.samples)
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = index if isinstance(index, tuple) else (0, index)
        with seeded(self._seed, epoch, index):
            image, label = self._images[index]
        return image, label


class _VisibleFolders(ImageFolder):  # type: ignore[misc]
    """An `ImageFolder` of torchvision's that leaves out hidden folders, such as .ipynb_checkpoints."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Return the names of the classes, sorted, and their labels."""
        found, _ = super().find_classes(directory)
        names = [name for name in found if not name.startswith(".")]
        return names, {name: label for label, name in enumerate(names)}


def classification_batches(
    dataset: LabelledImages,
    *,
    images_per_step: int,
    seed: int,
    workers: int,
    damaged_images: int = 0,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Any]:
    """Yield batches without end: this process's share of the `images_per_step` of each step, from step `start` on.

    Each is a pair of the batch, images (B, 3, size, size) and labels (B,) int64, and lines on damaged images. See
    `TrainingBatchSampler` and `WithReplacements`.
    """
    one_group = np.zeros(len(dataset), dtype=np.int64)
    sampler = TrainingBatchSampler(
        one_group, images_per_step, seed=seed, start=start, rank=rank, world_size=world_size
    )
    return iter(training_batches(dataset, sampler, workers, default_collate, damaged_images))


def classification_evaluation_loader(
    dataset: LabelledImages, *, batch_size: int, workers: int, rank: int = 0, world_size: int = 1
) -> DataLoader[Any]:
    """Return a loader of every image once, in order, as (images, labels); batch i goes to process i % world_size."""
    return evaluation_loader(
        dataset, batch_size=batch_size, workers=workers, rank=rank, world_size=world_size, collate=default_collate
    )


def _training_transform(size: int) -> v2.Compose:
    return v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), *_normalise()])


def _evaluation_transform(size: int) -> v2.Compose:
    shorter = round(size * _EVALUATION_RESIZE)
    return v2.Compose([v2.Resize(shorter, antialias=True), v2.CenterCrop(size), *_normalise()])


def _normalise() -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD), v2.ToPureTensor()]
