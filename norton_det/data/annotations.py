"""The annotations of a dataset in COCO's format: checked, selected and packed into a few arrays.

No Python object is left for each annotation, so that forked worker processes share one copy
(counting references would make each of them copy whatever it touches).
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from norton_det.data.catalog import Categories, DatasetFiles, Task, read_annotations
from norton_det.keypoints import COCO_KEYPOINTS, Keypoints

LARGEST = 2**31 - 1
"""Of ids, sizes and coordinates: beyond it something is wrong with the file."""
MIN_KEYPOINTS = 10  # visible ones of COCO's 17 that a training image needs, as in torchvision's references


@dataclass(frozen=True)
class Objects:
    """The objects of n images; those of image i are `offsets[i]` to `offsets[i + 1]` of m."""

    offsets: NDArray[np.int64]  # (n + 1,)
    boxes: NDArray[np.float32]  # (m, 4) xyxy
    labels: NDArray[np.int64]  # (m,)
    areas: NDArray[np.float32]  # (m,)
    keypoints: NDArray[np.float32]  # (m, K, 3) x, y, visibility; for other tasks (0, 0, 3)
    segmentations: bytes  # JSON of one object after the other; for other tasks than segm empty
    segmentation_offsets: NDArray[np.int64]  # (m + 1,)

    def segmentation(self, index: int) -> Any:
        """Object `index`'s segmentation as the dataset's JSON has it: polygons or RLE."""
        start, stop = self.segmentation_offsets[index : index + 2]
        return json.loads(self.segmentations[start:stop])


@dataclass(frozen=True)
class Annotations:
    """The n images of a dataset, ordered by id, and for training their objects."""

    ids: NDArray[np.int64]  # (n,)
    sizes: NDArray[np.int64]  # (n, 2) height, width
    file_names: NDArray[np.bytes_]  # (n,) UTF-8, relative to the image folder
    objects: Objects | None
    dropped: dict[str, int]  # how many objects and images were left out, by reason


def load_annotations(
    files: DatasetFiles, categories: Categories, task: Task, training: bool, keep_empty: bool
) -> Annotations:
    """Reads a dataset's JSON; what training leaves out is described at `CocoDataset`.

    Raises:
        ValueError: no valid JSON in COCO's format; the message names the file and the annotation's id.
    """
    file = files.annotations
    content = read_annotations(file)
    images = _images_by_id(content["images"], file)
    annotations = _group_by_image(content, images, file)
    dropped: Counter[str] = Counter()
    objects = None
    if training:
        labels, keypoints = categories.labels, categories.keypoints if task == "keypoints" else None
        for id, image in images.items():
            annotations[id] = _select(annotations[id], image, labels, task, keypoints, dropped, file)
        images = {id: images[id] for id in images if _is_trainable(annotations[id], keypoints, keep_empty, dropped)}
        if not images:
            raise ValueError(f"{file}: no image to train on; left out: {dict(dropped)}")
        objects = _pack([annotations[id] for id in images], labels, task, keypoints)
    return Annotations(
        ids=np.array(list(images), dtype=np.int64),
        sizes=np.array([(image["height"], image["width"]) for image in images.values()], np.int64).reshape(-1, 2),
        file_names=np.array([image["file_name"].encode() for image in images.values()], dtype=np.bytes_),
        objects=objects,
        dropped=dict(+dropped),  # without zeros
    )


def _images_by_id(entries: list[dict[str, Any]], file: Path) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    for entry in entries:
        for key, kind in (("id", int), ("height", int), ("width", int), ("file_name", str)):
            if not isinstance(entry.get(key), kind):
                raise ValueError(f"{file}: image {entry} needs {key!r}, expected of type {kind.__name__}")
        path = PurePosixPath(entry["file_name"])
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{file}: the image path {entry['file_name']!r} leads out of the image folder")
        if not path.name or not entry["file_name"].isprintable():
            raise ValueError(f"{file}: {entry['file_name']!r} is no name of an image")
        if entry["id"] in images or not 0 <= entry["id"] <= LARGEST:
            raise ValueError(f"{file}: image id {entry['id']}, expected each id once, from 0 to {LARGEST}")
        if not (0 < entry["height"] <= LARGEST and 0 < entry["width"] <= LARGEST):
            raise ValueError(f"{file}: image {entry['id']} is {entry['width']} x {entry['height']} pixels")
        images[entry["id"]] = entry
    return dict(sorted(images.items()))


def _group_by_image(
    content: dict[str, Any], images: dict[int, dict[str, Any]], file: Path
) -> dict[int, list[dict[str, Any]]]:
    known = {category.get("id") for category in content["categories"]}
    grouped: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        for key, ids in (("image_id", images), ("category_id", known)):
            id = annotation.get(key)
            if not isinstance(id, int) or id not in ids:
                raise ValueError(f"{file}: annotation {annotation.get('id')} has the unknown {key} {id!r}")
        grouped[annotation["image_id"]].append(annotation)
    return grouped


def _select(
    annotations: list[dict[str, Any]],
    image: dict[str, Any],
    labels: dict[int, int],
    task: Task,
    keypoints: Keypoints | None,
    dropped: Counter[str],
    file: Path,
) -> list[dict[str, Any]]:
    """The annotations to train on, each with its clipped box as `xyxy`."""
    selected = []
    for annotation in annotations:
        try:
            box = _clipped_box(annotation, image)
            reason = _reason_to_drop(annotation, box, image, labels, task, keypoints)
        except ValueError as error:
            raise ValueError(f"{file}: annotation {annotation.get('id')}: {error}") from None
        if reason:
            dropped[reason] += 1
        else:
            selected.append({**annotation, "xyxy": box})
    return selected


def _clipped_box(annotation: dict[str, Any], image: dict[str, Any]) -> tuple[float, float, float, float]:
    box = annotation.get("bbox")
    if not are_numbers(box, 4):
        raise ValueError(f"bbox {box!r}, expected four numbers [x, y, width, height]")
    x, y, width, height = box  # type: ignore[misc]
    return (
        min(max(x, 0), image["width"]),
        min(max(y, 0), image["height"]),
        min(max(x + width, 0), image["width"]),
        min(max(y + height, 0), image["height"]),
    )


def _reason_to_drop(
    annotation: dict[str, Any],
    box: tuple[float, float, float, float],
    image: dict[str, Any],
    labels: dict[int, int],
    task: Task,
    keypoints: Keypoints | None,
) -> str | None:
    if annotation["category_id"] not in labels:
        return "objects of other categories"
    if annotation.get("iscrowd"):
        return "crowds"
    if box[2] - box[0] < 1 or box[3] - box[1] < 1:
        return "boxes below one pixel"
    if not are_numbers([annotation.get("area", 0)], 1):
        raise ValueError(f"area {annotation['area']!r}, expected a number")
    if task == "segm" and not _has_mask(annotation.get("segmentation"), image):
        return "objects without a mask"
    if keypoints and "keypoints" in annotation:
        check_points(annotation["keypoints"], keypoints.count)
    return None


def _has_mask(segmentation: Any, image: dict[str, Any]) -> bool:
    """Whether there is something to decode: RLE, or polygons of at least three points."""
    if isinstance(segmentation, dict):
        size = [image["height"], image["width"]]
        if segmentation.get("size") != size or not _are_run_lengths(segmentation.get("counts"), size[0] * size[1]):
            raise ValueError(f"RLE of size {segmentation.get('size')}, expected 'counts' and 'size' {size}")
        return True
    polygons = segmentation if isinstance(segmentation, list) else []
    return bool(polygons) and all(
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and are_numbers(polygon, len(polygon))
        for polygon in polygons
    )


def _are_run_lengths(counts: Any, pixels: int) -> bool:
    """Whether pycocotools can read them without leaving their memory: numbers that add up to the image, or text of
    characters that hold five bits each and a sixth, which says that the number goes on, on all but the last."""
    if isinstance(counts, str):
        return bool(counts) and all("0" <= c < "p" for c in counts) and not (ord(counts[-1]) - ord("0")) & 32
    return (
        isinstance(counts, list)
        and all(isinstance(count, int) and count >= 0 for count in counts)
        and sum(counts) == pixels
    )


def are_numbers(values: Any, count: int) -> bool:
    """Whether a JSON value is a list of so many numbers of a size that pixels may have."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, int | float) and abs(value) <= LARGEST for value in values)
    )


def check_points(points: Any, count: int) -> None:
    """Raises ValueError where a JSON value is no flat list of x, y, visibility of so many keypoints."""
    if not are_numbers(points, 3 * count):
        raise ValueError(f"keypoints {points!r}, expected {count} times x, y, visibility")


def _is_trainable(
    annotations: list[dict[str, Any]], keypoints: Keypoints | None, keep_empty: bool, dropped: Counter[str]
) -> bool:
    if not annotations:
        dropped["images without objects"] += not keep_empty
        return keep_empty
    if keypoints is None:
        return True
    visible: int = sum(v > 0 for annotation in annotations for v in annotation.get("keypoints", [])[2::3])
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
    points = [a.get("keypoints", [0] * 3 * count) for a in annotations] if keypoints else []
    return Objects(
        offsets=_offsets(images),
        boxes=np.array([a["xyxy"] for a in annotations], dtype=np.float32).reshape(-1, 4),
        labels=np.array([labels[a["category_id"]] for a in annotations], dtype=np.int64),
        areas=np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in annotations], dtype=np.float32),
        keypoints=np.array(points, dtype=np.float32).reshape(len(points), count, 3),
        segmentations=b"".join(segmentations),
        segmentation_offsets=_offsets(segmentations),
    )


def _offsets(parts: list[Any]) -> NDArray[np.int64]:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)
