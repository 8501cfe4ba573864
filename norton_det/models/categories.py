"""The names of what a detector finds: `.categories` by label, `.category_ids` the dataset's ids in the same order,
and the `.keypoints` of one that finds them."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from norton_det.keypoints import COCO_KEYPOINTS, Keypoints
from norton_det.models.parts import regions

BACKGROUND = "__background__"


def default_categories(num_classes: int, has_keypoints: bool = False) -> tuple[list[str], list[int]]:
    """Names and ids where nothing is said: torchvision's for its 91 of COCO and for its people, else numbers.

    `num_classes` counts the background, which comes first.

    Examples:
        >>> default_categories(3)
        (['__background__', 'class 1', 'class 2'], [0, 1, 2])
    """
    coco = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if num_classes == len(coco):
        return list(coco), list(range(num_classes))
    if has_keypoints and num_classes == 2:
        return [BACKGROUND, coco[1]], [0, 1]
    return [BACKGROUND, *(f"class {i}" for i in range(1, num_classes))], list(range(num_classes))


def categories_of(detector: nn.Module) -> tuple[list[str], list[int]]:
    """A detector's names and ids by label; torchvision's own has none, and gets `default_categories`."""
    model: Any = detector
    told = {name: getattr(model, name, None) for name in ("categories", "category_ids")}
    return told_categories(told, detector)


def told_categories(told: Mapping[str, Any], detector: nn.Module) -> tuple[list[str], list[int]]:
    """The names and ids that a file tells, where they are as many as the classes; else `default_categories`."""
    num_classes = class_count(detector)
    names, ids = told.get("categories"), told.get("category_ids")
    if (
        isinstance(names, list)
        and isinstance(ids, list)
        and len(names) == len(ids) == num_classes
        and all(isinstance(name, str) for name in names)
        and all(isinstance(id, int) for id in ids)
    ):
        return list(names), list(ids)
    return default_categories(num_classes, "keypoint" in regions(detector))


def keypoints_of(detector: nn.Module) -> Keypoints | None:
    """A Keypoint R-CNN's keypoints: its own, COCO's where it has none and finds 17, else numbered ones.

    None for a detector that finds none.
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
    """The keypoints that a file tells, where they are as many as the detector finds; else as `keypoints_of`."""
    with suppress(TypeError, ValueError, KeyError):
        names, flip, skeleton = (tuple(told[part]) for part in ("names", "flip", "skeleton"))  # type: ignore[index]
        found = Keypoints(names, flip, tuple(tuple(bone) for bone in skeleton))
        if found.count == keypoint_count(detector) and all(isinstance(name, str) for name in names):
            return found
    return keypoints_of(detector)


def class_layer(detector: nn.Module) -> Any:
    """The layer that tells the classes apart, and that has its number of them as `out_features` or `num_classes`."""
    model: Any = detector
    if hasattr(model, "roi_heads"):
        return model.roi_heads.box_predictor.cls_score
    return model.head.classification_head


def class_count(detector: nn.Module) -> int:
    """How many classes a detector tells apart, the background counted."""
    layer = class_layer(detector)
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.num_classes)


def keypoint_count(detector: nn.Module) -> int:
    """How many keypoints a Keypoint R-CNN finds of each object."""
    return int(regions(detector)["keypoint"].predictor.kps_score_lowres.out_channels)
