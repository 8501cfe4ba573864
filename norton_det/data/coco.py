"""Reading images and targets of a dataset in COCO's format."""

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from norton_det.data.annotations import load_annotations
from norton_det.data.catalog import Categories, DatasetFiles, Task
from norton_det.data.images import read_image
from norton_det.data.transforms import Target, Transform, seeded

logger = logging.getLogger(__name__)


class CocoDataset(Dataset[tuple[Tensor, Target]]):
    """Images and targets of a dataset in COCO's format, ordered by image id.

    `dataset[index]`, or `dataset[epoch, index]`, is an image, a `tv_tensors.Image` (3, H, W), uint8 RGB
    before the transforms, and a target: image_id, and for training

        boxes       tv_tensors.BoundingBoxes (N, 4) float32, xyxy pixels
        labels      (N,) int64; area (N,) float32; iscrowd (N,) int64
        masks       tv_tensors.Mask (N, H, W) uint8, for the task segm
        keypoints   tv_tensors.KeyPoints (N, K, 2) float32 and visibility (N, K) int64, for keypoints

    Training leaves out crowds, boxes that are less than a pixel wide or high inside the image, for segm
    objects without a mask, for keypoints all objects of categories without them and images that show none (of COCO's
    17 keypoints fewer than 10), and images without objects. Otherwise every image is there, and no object is read.

    Args:
        files: where it is.
        categories: the labels.
        task: what to read.
        training: see above.
        transforms: applied to each sample, with torch's generator seeded from (seed, epoch, image id).
        keep_empty: keeps images without objects.
        seed: of the transforms.

    Attributes:
        ids: (n,) int64, image ids.
        sizes: (n, 2) int64, heights and widths.
        counts: what was left out, by reason.

    Raises:
        ValueError: broken files or annotations, a path out of the image folder, nothing to train on.
        FileNotFoundError: on access to an image that is not there.
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
    ) -> None:
        annotations = load_annotations(files, categories, task, training, keep_empty)
        self.ids = annotations.ids
        self.sizes = annotations.sizes
        self.counts = annotations.dropped
        self._file_names = annotations.file_names
        self._objects = annotations.objects
        self._folder = files.images
        self._task = task
        self._transforms = transforms
        self._seed = seed
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        logger.info("%s: %d images; left out: %s", files.name, len(self), left_out or "nothing")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, Target]:
        epoch, index = index if isinstance(index, tuple) else (0, index)
        index = range(len(self))[index]
        image = self._read_image(index)
        target = {"image_id": int(self.ids[index]), **self._read_objects(index)}
        if self._transforms is None:
            return image, target
        with seeded(self._seed, epoch, target["image_id"]):
            return self._transforms(image, target)

    def _read_image(self, index: int) -> Tensor:
        path = self._folder / self._file_names[index].decode()
        pixels = read_image(path)
        (height, width), expected = pixels.shape[1:], self.sizes[index].tolist()
        if [height, width] != expected:
            raise ValueError(
                f"{path}: {width} x {height} pixels, but the annotations say {expected[1]} x {expected[0]}"
            )
        return pixels

    def _read_objects(self, index: int) -> Target:
        if self._objects is None:
            return {}
        first, stop = self._objects.offsets[index : index + 2]
        height, width = size = tuple(self.sizes[index].tolist())
        boxes = torch.from_numpy(self._objects.boxes[first:stop].copy())
        labels = torch.from_numpy(self._objects.labels[first:stop].copy())
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": labels,
            "area": torch.from_numpy(self._objects.areas[first:stop].copy()),
            "iscrowd": torch.zeros_like(labels),
        }
        if self._task == "segm":
            masks = np.zeros((len(labels), height, width), dtype=np.uint8)
            for mask, number in zip(masks, range(first, stop), strict=True):
                mask[:] = decode_segmentation(self._objects.segmentation(number), height, width)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        if self._task == "keypoints":
            keypoints = torch.from_numpy(self._objects.keypoints[first:stop].copy())
            target["keypoints"] = tv_tensors.KeyPoints(keypoints[..., :2], canvas_size=size)
            target["visibility"] = keypoints[..., 2].long()
        return target


def decode_segmentation(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """The (height, width) mask, 0 and 1, of COCO's polygons, which are united, or RLE of either kind."""
    if isinstance(segmentation, list):
        encoded = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = rle.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    mask: NDArray[np.uint8] = rle.decode(encoded)
    return mask
