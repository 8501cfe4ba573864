"""Names what a detector finds: `.categories` holds the names by label, `.category_ids` the dataset's ids in the same
order, and `.keypoints` the keypoints of a detector that finds them."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import detection, get_model_weights, list_models

from norton_det.files import sha256
from norton_det.keypoints import COCO_KEYPOINTS, Keypoints
from norton_det.models.parts import regions

BACKGROUND = "__background__"


def numbered_categories(num_classes: int) -> tuple[list[str], list[int]]:
    """Return numbered names and ids for unnamed classes. `num_classes` counts the background, which comes first.

    Examples:
        >>> numbered_categories(3)
        (['__background__', 'class 1', 'class 2'], [0, 1, 2])
    """
    return [BACKGROUND, *(f"class {i}" for i in range(1, num_classes))], list(range(num_classes))


def are_named(names: Sequence[str]) -> bool:
    """Tell whether somebody named a detector's classes."""
    return list(names) != numbered_categories(len(names))[0]


def published_categories(path: str | Path) -> dict[str, list[str]]:
    """Return the class names of a detector's file published by torchvision, known by its SHA-256; {} for others."""
    if not Path(path).is_file():
        return {}
    digest = sha256(path)
    for name in list_models(module=detection):
        for weights in get_model_weights(name):
            if digest.startswith(Path(weights.url).stem.rpartition("-")[2]):
                return {"categories": [BACKGROUND, *weights.meta["categories"][1:]]}
    return {}


def categories_from_file(path: str | Path) -> dict[str, Any]:
    """Read the categories that a detector finds from a JSON file: a list of their names, or data in COCO's format,
    whose categories are taken in the order of their ids.

    Raises ValueError naming the file where it is neither.
    """
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not a JSON file that can be read") from None
    found = told.get("categories") if isinstance(told, dict) else told
    if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
        return {"categories": [BACKGROUND, *found], "category_ids": list(range(len(found) + 1))}
    with suppress(TypeError, KeyError):
        pairs = sorted((category["id"], category["name"]) for category in found or ())
        if pairs and all(type(id) is int and isinstance(name, str) for id, name in pairs):
            ids, names = zip(*pairs, strict=True)
            return {"categories": [BACKGROUND, *names], "category_ids": [0, *ids]}
    raise ValueError(f"{path}: expected a list of names, or categories in COCO's format")


def categories_of(detector: nn.Module) -> tuple[list[str], list[int]]:
    """Return a detector's names and ids by label; torchvision's own has none, and gets `numbered_categories`."""
    model: Any = detector
    told = {name: getattr(model, name, None) for name in ("categories", "category_ids")}
    return told_categories(told, detector)


def told_categories(told: Mapping[str, Any], detector: nn.Module) -> tuple[list[str], list[int]]:
    """Return the names and ids that a file tells, if they are as many as the classes; names alone get ids from 0.

    Otherwise returns `numbered_categories`.
    """
    num_classes = class_count(detector)
    names, ids = told.get("categories"), told.get("category_ids") or list(range(num_classes))
    if (
        isinstance(names, list | tuple)
        and isinstance(ids, list | tuple)
        and len(names) == len(ids) == num_classes
        and all(isinstance(name, str) for name in names)
        and all(isinstance(id, Integral) for id in ids)
    ):
        return list(names), [int(id) for id in ids]
    return numbered_categories(num_classes)


def keypoints_of(detector: nn.Module) -> Keypoints | None:
    """Return a Keypoint R-CNN's keypoints: its own; else COCO's, if it finds 17; else numbered ones.

    Returns None for a detector that finds no keypoints.
    """
    if "keypoint" not in regions(detector):
        return None
    model: Any = detector
    count = keypoint_count(detector)
    own = getattr(model, "keypoints", None)
    if isinstance(own, Keypoints) and own.count == count:
        return own
    return (
        COCO_KEYPOINTS if count == COCO_KEYPOINTS.count else Keypoints.named([f"keypoint {i}" for i in range(count)])
    )


def told_keypoints(told: object, detector: nn.Module) -> Keypoints | None:
    """Return the keypoints that a file tells, if their number is the detector's; else those of `keypoints_of`."""
    with suppress(TypeError, ValueError, KeyError):
        names, flip, skeleton = (tuple(told[part]) for part in ("names", "flip", "skeleton"))  # type: ignore[index]
        found = Keypoints(names, flip, tuple(tuple(bone) for bone in skeleton))
        if found.count == keypoint_count(detector) and all(isinstance(name, str) for name in names):
            return found
    return keypoints_of(detector)


def class_layer(detector: nn.Module) -> Any:
    """Return the layer that tells the classes apart; it has their number as `out_features` or `num_classes`."""
    model: Any = detector
    if hasattr(model, "roi_heads"):
        return model.roi_heads.box_predictor.cls_score
    return model.head.classification_head


def class_count(detector: nn.Module) -> int:
    """Return how many classes a detector tells apart, the background counted."""
    layer = class_layer(detector)
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.num_classes)


def keypoint_count(detector: nn.Module) -> int:
    """Return how many keypoints a Keypoint R-CNN finds of each object."""
    return int(regions(detector)["keypoint"].predictor.kps_score_lowres.out_channels)
