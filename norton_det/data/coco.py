"""Reads images and targets of a dataset in COCO's format."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from norton_det.data.annotations import describe_left_out, load_annotations
from norton_det.data.catalog import Categories, DatasetFiles
from norton_det.data.images import describe_misfit, read_header, read_image
from norton_det.data.reading import Content, Task
from norton_det.data.transforms import Target, Transform, seeded
from norton_det.names import number_of

logger = logging.getLogger(__name__)


class CocoDataset(Dataset[tuple[Tensor, Target]]):
    """Reads images and targets of a dataset in COCO's format, ordered by image id.

    `dataset[index]`, or `dataset[epoch, index]`, is an image, a `tv_tensors.Image` (3, H, W), uint8 RGB
    before the transforms, and a target: image_id, and for training

        boxes       tv_tensors.BoundingBoxes (N, 4) float32, xyxy pixels
        labels      (N,) int64; area (N,) float32; iscrowd (N,) int64
        masks       tv_tensors.Mask (N, H, W) uint8, for the task segm
        keypoints   tv_tensors.KeyPoints (N, K, 2) float32 and visibility (N, K) int64, for keypoints

    Training leaves out crowds, boxes that are less than a pixel wide or high inside the image, and images without
    objects. For segm it also leaves out objects without a mask. For keypoints it also leaves out objects of
    categories without keypoints, and images with no visible keypoint (with COCO's 17 keypoints: with fewer than 10).
    Otherwise every image is there, and no object is read. Images are read upright, as their EXIF data say; sizes and
    annotations refer to the upright image.

    Args:
        files: where the dataset lies.
        categories: the labels.
        task: what to read.
        training: whether to read objects and to leave out what is named above.
        transforms: applied to each sample, with torch's generator seeded from (seed, epoch, image id).
        keep_empty: keeps images without objects, except those whose objects were all left out.
        seed: the transforms' seed.
        content: what the dataset's JSON holds, if it has been read already; what is left out is counted there too.

    Attributes:
        folder: the folder of the images.
        ids: (n,) int64, image ids.
        sizes: (n, 2) int64, heights and widths.
        counts: how much was left out, by reason.

    Raises:
        ValueError: files or annotations are broken, a path leads out of the image folder, or nothing is left to train
            on.
        FileNotFoundError: an image that is asked for is not there.
    """

    def __init__(
        self,
        files: DatasetFiles,
        categories: Categories,
        task: Task,
        training: bool,
        transforms: Transform | None = None,
        keep_empty: bool = False,
        seed: int = 0,
        content: Content | None = None,
    ) -> None:
        annotations = load_annotations(files, categories, task, training, keep_empty, content)
        self.ids = annotations.ids
        self.sizes = annotations.sizes
        self.counts = annotations.dropped
        self._file_names = annotations.file_names
        self._objects = annotations.objects
        self.folder = files.images
        self._task = task
        self._transforms = transforms
        self._seed = seed
        self._most: tuple[int, int] | None = None
        empty = 0 if self._objects is None else int((np.diff(self._objects.offsets) == 0).sum())
        held = number_of(len(self), "image") + (f", {empty} of them without objects" if empty else "")
        logger.info("%s: %s; left out: %s", files.name, held, describe_left_out(self.counts))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def paths(self) -> Iterator[Path]:
        """Return the files of the images."""
        return (self.folder / name.decode() for name in self._file_names)

    def shrink(self, shorter: int, longer: int) -> None:
        """Shrink larger images, with their objects, as they are read: to at most these pixels on their shorter and
        longer sides. These limits then bound the memory that a sample needs, however large the photo is."""
        self._most = (shorter, longer)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, Target]:
        epoch, index = index if isinstance(index, tuple) else (0, index)
        index = range(len(self))[index]
        size = self._read_size(index)
        image = self._read_image(index, size)
        target = {"image_id": int(self.ids[index]), **self._read_objects(index, size)}
        if self._transforms is None:
            return image, target
        with seeded(self._seed, epoch, target["image_id"]):
            return self._transforms(image, target)

    def _read_size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of image `index` as it is read."""
        height, width = self.sizes[index].tolist()
        if self._most is None:
            return height, width
        (shorter, longer), most = sorted((height, width)), self._most
        scale = min(most[0] / shorter, most[1] / longer, 1.0)
        return max(1, round(scale * height)), max(1, round(scale * width))

    def _read_image(self, index: int, size: tuple[int, int]) -> Tensor:
        path = self.folder / self._file_names[index].decode()
        pixels = read_image(path)
        if list(pixels.shape[1:]) != self.sizes[index].tolist():
            raise ValueError(describe_misfit(path, read_header(path), tuple(self.sizes[index].tolist())))
        image: Tensor = tv_tensors.Image(resized(pixels, size, "bilinear"))
        return image

    def _read_objects(self, index: int, size: tuple[int, int]) -> Target:
        if self._objects is None:
            return {}
        first, stop = self._objects.offsets[index : index + 2]
        height, width = self.sizes[index].tolist()
        scale = torch.tensor([size[1] / width, size[0] / height])
        boxes = torch.from_numpy(self._objects.boxes[first:stop]) * scale.repeat(2)
        labels = torch.from_numpy(self._objects.labels[first:stop].copy())
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": labels,
            "area": torch.from_numpy(self._objects.areas[first:stop]) * scale.prod(),
            "iscrowd": torch.zeros_like(labels),
        }
        if self._task == "segm":
            masks = torch.zeros((len(labels), *size), dtype=torch.uint8)
            for mask, number in zip(masks, range(first, stop), strict=True):  # one by one: a photo's may be large
                whole = torch.from_numpy(decode_segmentation(self._objects.segmentation(number), height, width))
                mask[:] = resized(whole[None], size, "nearest")[0]
            target["masks"] = tv_tensors.Mask(masks)
        if self._task == "keypoints":
            keypoints = torch.from_numpy(self._objects.keypoints[first:stop])
            target["keypoints"] = tv_tensors.KeyPoints(keypoints[..., :2] * scale, canvas_size=size)
            target["visibility"] = keypoints[..., 2].long()
        return target


def resized(picture: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize a uint8 picture (C, H, W) as a detector's own transform would."""
    if picture.shape[1:] == size:
        return picture
    options = {"align_corners": False} if mode == "bilinear" else {}
    plain = picture.as_subclass(Tensor)[None].float()
    made: Tensor = F.interpolate(plain, size, mode=mode, **options)[0].round().to(torch.uint8)
    return made


def decode_segmentation(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Decode COCO's polygons, whose union counts, or RLE of either kind to a mask (height, width) of 0 and 1."""
    if isinstance(segmentation, list):
        encoded = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = rle.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    mask: NDArray[np.uint8] = rle.decode(encoded)
    return mask
