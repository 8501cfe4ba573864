"""What a configuration names: a device, a dataset's files, a plan, weights."""

from dataclasses import replace

import torch

from norton_det.compression.plan import CompressionPlan, load_plan
from norton_det.config import Config
from norton_det.data.catalog import Categories, DatasetFiles, Task, find_dataset, read_categories
from norton_det.engine import distributed
from norton_det.models.weights import Weights, imagenet_weights, read_weights

TASKS: dict[str, Task] = {"faster_rcnn": "bbox", "mask_rcnn": "segm", "keypoint_rcnn": "keypoints"}


def resolve_device(config: Config) -> torch.device:
    """The device that a configuration names. Raises ValueError for a GPU that is not there."""
    return distributed.find_device(config.device)


def resolve_dataset(config: Config, split: str) -> DatasetFiles:
    """The files of `data.train` or `data.test` for the configured task. Raises as `find_dataset`."""
    dataset = getattr(config.data, split)
    where = dataset if isinstance(dataset, str) else dataset.model_dump()
    return find_dataset(where, TASKS[config.model.detector])


def resolve_categories(config: Config, files: DatasetFiles) -> Categories:
    """The categories of a dataset for the configured task, their keypoints paired as `data.flip_pairs` says.

    Raises ValueError as `read_categories` does, and for pairs of other names than the keypoints'.
    """
    categories = read_categories(files, TASKS[config.model.detector])
    if categories.keypoints is None or config.data.flip_pairs is None:
        return categories
    try:
        return replace(categories, keypoints=categories.keypoints.with_pairs(config.data.flip_pairs))
    except ValueError as error:
        raise ValueError(f"data.flip_pairs: {error}") from None


def resolve_plan(config: Config) -> CompressionPlan | None:
    """The configured plan; None is dense. Raises ValueError as `load_plan`."""
    return None if config.model.plan == "none" else load_plan(config.model.plan)


def starting_weights(config: Config) -> Weights | None:
    """The detector's or backbone's weights that a run starts from; None is random ones.

    Raises ValueError where a file is missing, or holds the other kind.
    """
    model = config.model
    if model.weights != "none":
        weights = read_weights(model.weights)
        if not weights.is_detector:
            raise ValueError(f"model.weights: {model.weights} is a backbone; give it as model.backbone_weights")
        return weights
    if model.backbone_weights == "none":
        return None
    weights = imagenet_weights() if model.backbone_weights == "imagenet" else read_weights(model.backbone_weights)
    if weights.is_detector:
        raise ValueError(f"model.backbone_weights: {weights.source} is a detector; give it as model.weights")
    return weights
