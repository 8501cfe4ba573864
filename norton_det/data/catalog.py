"""Finds the files and the categories of a dataset by its name."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from norton_det.data.images import ImageFiles, find_images
from norton_det.data.reading import Task, read_annotations, read_category
from norton_det.keypoints import COCO_KEYPOINTS, Keypoints, parse_keypoints
from norton_det.names import did_you_mean

BACKGROUND = "__background__"
UNUSED = "N/A"
MOST_LABELS = 10_000
_COCO_LABELS = 91  # torchvision's: label = category id, 11 of them unused

# name: (folder under the datasets root, split); both use <folder>/<split>/ and annotations/*_<split>.json
_DATASETS = {
    "coco_2017_train": ("coco", "train2017"),
    "coco_2017_val": ("coco", "val2017"),
    "shapes_train": ("shapes", "train"),
    "shapes_val": ("shapes", "val"),
}


@dataclass(frozen=True)
class Categories:
    """Holds a detector's classes; the index is the label.

    Attributes:
        names: the classes' names; `names[0]` is "__background__", and a label that no category uses is named "N/A",
            as in torchvision.
        ids: the dataset's category ids in the same order; `ids[0]` is 0.
        keypoints: the keypoints, which all categories share, for the task keypoints.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    keypoints: Keypoints | None = None

    @property
    def labels(self) -> dict[int, int]:
        """Return the label of each category id that is in use."""
        return {self.ids[label]: label for label in range(1, len(self.names)) if self.names[label] != UNUSED}


@dataclass(frozen=True)
class DatasetFiles:
    """Says where a dataset lies: the folder of its images, and the JSON of its annotations in COCO's format.

    `keeps_ids` says that its labels are its category ids, as torchvision has them for COCO.
    """

    name: str
    images: Path
    annotations: Path
    keeps_ids: bool


def datasets_root() -> Path:
    """Return the folder that holds the datasets: `NORTON_DATASETS`, by default `datasets`."""
    return Path(os.environ.get("NORTON_DATASETS") or "datasets").expanduser()


def find_dataset(dataset: str | Mapping[str, str], task: Task) -> DatasetFiles:
    """Return the files of a dataset: one of the catalogue by name, or your own by `{images: DIR, annotations: FILE}`.

    The embedded dataset, shapes, is drawn if it is missing.

    Raises:
        ValueError: the catalogue lacks the name, or a mapping has other keys.
        FileNotFoundError: the files are not there; the message says how to get them.
    """
    if not isinstance(dataset, str):
        return _find_custom(dataset)
    if dataset not in _DATASETS:
        hint = did_you_mean(dataset, _DATASETS)
        raise ValueError(f"unknown dataset {dataset!r}{hint} (known: {', '.join(_DATASETS)})")
    folder, split = _DATASETS[dataset]
    root = datasets_root() / folder
    prefix = "person_keypoints" if task == "keypoints" else "instances"
    files = DatasetFiles(
        dataset, root / split, root / "annotations" / f"{prefix}_{split}.json", keeps_ids=folder == "coco"
    )
    missing = _missing(files)
    if missing and folder == "shapes":
        from norton_det.data.shapes import write_shapes  # which needs OpenCV, as nothing else here does

        write_shapes(root)
        missing = _missing(files)
        if missing:
            raise FileNotFoundError(f"{root} lacks {missing}: remove the folder, and it is drawn anew")
    if missing:
        raise FileNotFoundError(
            f"{dataset}: {missing} does not exist; unpack {split}.zip and annotations_trainval2017.zip of"
            f" https://cocodataset.org/#download into {root} (see datasets/README.md), or go on without COCO:"
            " --config quickstart.yaml, or data.train=shapes_train data.test=shapes_val"
        )
    return files


def read_categories(files: DatasetFiles, task: Task) -> Categories:
    """Read the categories that a dataset's JSON declares, and give them labels.

    COCO keeps torchvision's labels: the label is the category id, 91 labels with the background. All other datasets
    get contiguous labels by sorted id. For the task keypoints only categories with keypoints count.

    Raises:
        ValueError: the file is no JSON in COCO's format, declares no category, or declares an id twice; for
            keypoints: no category has any, they are broken (see `Keypoints`), or two categories have different ones.
    """
    found: dict[int, str] = {}
    declared = [read_category(category, files.annotations) for category in _declared_categories(files.annotations)]
    for category in declared:
        if category["id"] in found:
            raise ValueError(f"{files.annotations}: two categories have the id {category['id']}")
        if task != "keypoints" or category.get("keypoints"):
            found[category["id"]] = category["name"]
    if not found:
        kind = "category with keypoints" if task == "keypoints" else "category"
        raise ValueError(f"{files.annotations}: no {kind}")
    every_id = files.keeps_ids and task != "keypoints"
    if every_id and max(found) > MOST_LABELS:
        raise ValueError(f"{files.annotations}: category id {max(found)}, expected at most {MOST_LABELS}")
    ids = list(range(1, max(_COCO_LABELS, max(found) + 1))) if every_id else sorted(found)
    keypoints = _common_keypoints(declared, files.annotations) if task == "keypoints" else None
    return Categories((BACKGROUND, *(found.get(id, UNUSED) for id in ids)), (0, *ids), keypoints)


def read_keypoints(annotations: Path) -> Keypoints:
    """Return the keypoints that a JSON in COCO's format declares, or COCO's 17 if it declares none.

    Raises ValueError as `read_categories` does.
    """
    return _common_keypoints(_declared_categories(annotations), annotations) or COCO_KEYPOINTS


def _common_keypoints(categories: Iterable[Mapping[str, Any]], file: Path) -> Keypoints | None:
    """Return the keypoints that all categories with keypoints share, or None if no category has any."""
    first: tuple[Any, Keypoints] | None = None
    for category in categories:
        if not category.get("keypoints"):
            continue
        name = category.get("name")
        try:
            keypoints = parse_keypoints(category)
        except ValueError as error:
            raise ValueError(f"{file}: category {name!r}: {error}") from None
        first = first or (name, keypoints)
        if keypoints.names != first[1].names:
            raise ValueError(
                f"{file}: the categories {first[0]!r} and {name!r} have different keypoints,"
                f" expected the same: {', '.join(first[1].names)}"
            )
    return first[1] if first else None


def _declared_categories(path: Path) -> list[dict[str, Any]]:
    """Return the list under `categories`; if that key stands in the file once, nothing else is decoded."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    places = list(re.finditer(r'"categories"\s*:\s*', text))
    if len(places) == 1:
        try:
            categories, _ = json.JSONDecoder().raw_decode(text, places[0].end())
        except (ValueError, RecursionError):
            categories = None
        if isinstance(categories, list) and all(isinstance(category, dict) for category in categories):
            return categories
    return list(read_annotations(path)["categories"])


def _find_custom(dataset: Mapping[str, str]) -> DatasetFiles:
    if set(dataset) != {"images", "annotations"}:
        raise ValueError(
            f"dataset {dict(dataset)}: expected a name, or the keys 'images' (a folder) and 'annotations' (a JSON)"
        )
    annotations = Path(dataset["annotations"])
    files = DatasetFiles(annotations.stem, Path(dataset["images"]), annotations, keeps_ids=False)
    if missing := _missing(files):
        raise FileNotFoundError(f"dataset {dict(dataset)}: {missing} does not exist")
    return files


def _missing(files: DatasetFiles) -> str | None:
    if not files.images.is_dir():
        return f"the image folder {files.images}"
    return None if files.annotations.is_file() else f"the annotation file {files.annotations}"


def open_images(where: str, count: int) -> ImageFiles:
    """Open at most `count` images, taken evenly, of the folder that a dataset's name or a path stands for.

    Raises what `image_folder` and `find_images` raise.
    """
    return ImageFiles(find_images(image_folder(where), count))


def drawn_images(count: int, seed: int = 0) -> list[Tensor]:
    """Draw `count` images like the embedded dataset's, float RGB (3, H, W) in 0 to 1, of several sizes."""
    from norton_det.data.shapes import draw_scene

    rng = np.random.default_rng(seed)
    return [torch.from_numpy(draw_scene(rng).image).permute(2, 0, 1).float() / 255 for _ in range(count)]


def image_folder(where: str) -> Path:
    """Return the folder of images that a dataset's name or a path stands for.

    Raises ValueError for what is neither, and what `find_dataset` raises.
    """
    if Path(where).is_dir():
        return Path(where)
    if where in _DATASETS:
        return find_dataset(where, "bbox").images
    raise ValueError(f"{where!r} is neither a folder nor one of {', '.join(_DATASETS)}")
