"""Checks, selects and packs the annotations of a dataset in COCO's format into a few arrays.

No annotation keeps a Python object of its own, so that forked worker processes share one copy
(counting references would make each of them copy whatever it touches).
"""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from norton_det.data.catalog import Categories, DatasetFiles
from norton_det.data.reading import WITHOUT_MASK, Content, Task, read_content, whole
from norton_det.keypoints import COCO_KEYPOINTS, Keypoints

T = TypeVar("T")
log = logging.getLogger(__name__)
WITHOUT_OBJECTS = "images without objects"
MIN_KEYPOINTS = 10  # visible ones of COCO's 17 that a training image needs, as in torchvision's references


@dataclass(frozen=True)
class Objects:
    """Holds the m objects of n images; those of image i are `offsets[i]` to `offsets[i + 1]`."""

    offsets: NDArray[np.int64]  # (n + 1,)
    boxes: NDArray[np.float32]  # (m, 4) xyxy
    labels: NDArray[np.int64]  # (m,)
    areas: NDArray[np.float32]  # (m,)
    keypoints: NDArray[np.float32]  # (m, K, 3) x, y, visibility; for other tasks (0, 0, 3)
    segmentations: bytes  # JSON of one object after the other; empty for other tasks than segm
    segmentation_offsets: NDArray[np.int64]  # (m + 1,)

    def segmentation(self, index: int) -> Any:
        """Return the segmentation of object `index` as it stands in the dataset's JSON: polygons or RLE."""
        start, stop = self.segmentation_offsets[index : index + 2]
        return json.loads(self.segmentations[start:stop])


@dataclass(frozen=True)
class Annotations:
    """Holds the n images of a dataset, ordered by id, and for training their objects."""

    ids: NDArray[np.int64]  # (n,)
    sizes: NDArray[np.int64]  # (n, 2) height, width
    file_names: NDArray[np.bytes_]  # (n,) UTF-8, relative to the image folder
    objects: Objects | None
    dropped: dict[str, int]  # how many objects and images were left out, by reason


def load_annotations(
    files: DatasetFiles,
    categories: Categories,
    task: Task,
    training: bool,
    keep_empty: bool,
    content: Content | None = None,
) -> Annotations:
    """Pack the annotations of a dataset's JSON, which is read (see `reading`) unless its `content` is given.

    `CocoDataset` describes what training leaves out. A warning tells of images and annotations that occur twice.

    Raises:
        ValueError: the file is no valid JSON in COCO's format (the message names the file and the annotation's id),
            or no image is left to train on.
    """
    keypoints = categories.keypoints if task == "keypoints" else None
    if content is None:
        content = read_content(files.annotations, task, keypoints.count if keypoints else 0)
    content.sound()
    _tell_of_doubles(content, files.annotations)
    images, dropped = content.images, content.left_out
    objects = None
    if training:
        labels = categories.labels
        selected = _select(content, labels, task, dropped)
        shown = {annotation["image_id"] for annotation in content.annotations if annotation["category_id"] in labels}
        images = {
            id: image
            for id, image in images.items()
            if _is_trainable(selected[id], id in shown, keypoints, keep_empty, dropped)
        }
        if not images:
            raise ValueError(f"{files.annotations}: no image to train on; left out: {describe_left_out(dropped)}")
        objects = _pack([selected[id] for id in images], labels, task, keypoints)
    return Annotations(
        ids=np.array(list(images), dtype=np.int64),
        sizes=np.array([(image["height"], image["width"]) for image in images.values()], np.int64).reshape(-1, 2),
        file_names=np.array([image["file_name"].encode() for image in images.values()], dtype=np.bytes_),
        objects=objects,
        dropped=dict(+dropped),  # without zeros
    )


def _tell_of_doubles(content: Content, file: Path) -> None:
    """Warn of annotations that share an id, and of image files that several image ids name."""
    numbers = (whole(annotation.get("id")) for annotation in content.annotations)
    if found := _doubles(number for number in numbers if number is not None):
        told = "%s: ids that several annotations share: %d, such as %d; each annotation counts as an object"
        log.warning(told, file, len(found), found[0])
    if found := _doubles(image["file_name"] for image in content.images.values()):
        told = "%s: files that several image ids name: %d, such as %s; each id shows its own objects only"
        log.warning(told, file, len(found), found[0])


def _doubles(values: Iterable[T]) -> list[T]:
    """Return the values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def describe_left_out(dropped: Mapping[str, int]) -> str:
    """Return a line that says what was left out, how many of each, and how to keep images without objects."""
    way_on = " (data.keep_empty=true trains on images without objects)" if dropped.get(WITHOUT_OBJECTS) else ""
    return (", ".join(f"{reason} ({count})" for reason, count in dropped.items() if count) or "nothing") + way_on


def _select(
    content: Content, labels: dict[int, int], task: Task, dropped: Counter[str]
) -> dict[int, list[dict[str, Any]]]:
    """Return the annotations to train on, by image id, each with its clipped box as `xyxy`."""
    selected: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content.annotations:
        box = _clipped_box(annotation["bbox"], content.images[annotation["image_id"]])
        if reason := _reason_to_drop(annotation, box, labels, task):
            dropped[reason] += 1
        else:
            selected[annotation["image_id"]].append({**annotation, "xyxy": box})
    return selected


def _clipped_box(box: list[float], image: dict[str, Any]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return (
        min(max(x, 0), image["width"]),
        min(max(y, 0), image["height"]),
        min(max(x + width, 0), image["width"]),
        min(max(y + height, 0), image["height"]),
    )


def _reason_to_drop(
    annotation: dict[str, Any], box: tuple[float, float, float, float], labels: dict[int, int], task: Task
) -> str | None:
    if annotation["category_id"] not in labels:
        return "objects of other categories"
    if annotation["iscrowd"]:
        return "crowds"
    if box[2] - box[0] < 1 or box[3] - box[1] < 1:
        return "boxes below one pixel"
    if task == "segm" and not annotation["segmentation"]:
        return WITHOUT_MASK
    return None


def _is_trainable(
    selected: list[dict[str, Any]],
    shows_objects: bool,
    keypoints: Keypoints | None,
    keep_empty: bool,
    dropped: Counter[str],
) -> bool:
    if not selected and shows_objects:  # as an empty image it would teach that its objects are background
        dropped["images of which all objects are left out"] += 1
        return False
    if not selected:
        dropped[WITHOUT_OBJECTS] += not keep_empty
        return keep_empty
    if keypoints is None:
        return True
    visible: int = sum(v > 0 for annotation in selected for v in annotation["keypoints"][2::3])
    if keypoints.names == COCO_KEYPOINTS.names:
        dropped[f"images with fewer than {MIN_KEYPOINTS} visible keypoints"] += visible < MIN_KEYPOINTS
        return visible >= MIN_KEYPOINTS
    dropped["images without visible keypoints"] += not visible
    return visible > 0


def _pack(
    images: list[list[dict[str, Any]]], labels: dict[int, int], task: Task, keypoints: Keypoints | None
) -> Objects:
    annotations = [annotation for image in images for annotation in image]
    segmentations = [json.dumps(a["segmentation"]).encode() for a in annotations] if task == "segm" else []
    count = keypoints.count if keypoints else 0
    points = [a["keypoints"] for a in annotations] if keypoints else []
    return Objects(
        offsets=_offsets(images),
        boxes=np.array([a["xyxy"] for a in annotations], dtype=np.float32).reshape(-1, 4),
        labels=np.array([labels[a["category_id"]] for a in annotations], dtype=np.int64),
        areas=np.array([a["area"] for a in annotations], dtype=np.float32),
        keypoints=np.array(points, dtype=np.float32).reshape(len(points), count, 3),
        segmentations=b"".join(segmentations),
        segmentation_offsets=_offsets(segmentations),
    )


def _offsets(parts: list[Any]) -> NDArray[np.int64]:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)
