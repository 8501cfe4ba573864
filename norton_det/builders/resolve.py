"""Resolves what a configuration names: a device, a dataset's files, a plan, weights."""

from dataclasses import replace
from typing import Any

import torch

from norton_det.compression.plan import PlanLike, load_plan
from norton_det.config import Config
from norton_det.data.catalog import Categories, DatasetFiles, find_dataset, read_categories
from norton_det.data.reading import Task
from norton_det.engine import distributed
from norton_det.keypoints import COCO_KEYPOINTS, Keypoints
from norton_det.models.channels import read_body
from norton_det.models.rebuild import check_anchors
from norton_det.models.settings import read_settings, write_settings
from norton_det.models.structure import KINDS, BodyKind, Structure, default_anchors, named_structure, template
from norton_det.models.weights import Weights, imagenet_weights, read_weights

_TASKS: dict[str, Task] = {"mask_rcnn": "segm", "keypoint_rcnn": "keypoints"}


def resolve_task(config: Config) -> Task:
    """Return the task of the configured detector: what it finds beside boxes, or "bbox" if nothing."""
    return _TASKS.get(KINDS[config.model.detector]["kind"], "bbox")


def resolve_structure(
    config: Config, num_classes: int, body: BodyKind | None = None, keypoints: Keypoints = COCO_KEYPOINTS
) -> Structure:
    """Return the configured detector's structure for `num_classes`, with background, on `body` (None: its own)."""
    model = config.model
    structure = named_structure(
        model.detector,
        model.body,
        num_classes,
        channels=model.fpn_channels,
        box=model.box_channels,
        mask=model.mask_channels,
        keypoint=model.keypoint_channels,
        keypoints=keypoints.count,
    )
    if model.aspect_ratios:
        anchors = default_anchors(structure, levels=1)
        structure = replace(structure, anchors=len(anchors.sizes[0]) * len(model.aspect_ratios))
    return replace(structure, body=body) if body else structure


def resolve_device(config: Config) -> torch.device:
    """Return the device that a configuration names. Raises ValueError for a GPU that is not there."""
    return distributed.find_device(config.device)


def resolve_dataset(config: Config, split: str) -> DatasetFiles:
    """Return the files of `data.train` or `data.test` for the configured task. Raises what `find_dataset` raises."""
    dataset = getattr(config.data, split)
    where = dataset if isinstance(dataset, str) else dataset.model_dump()
    return find_dataset(where, resolve_task(config))


def resolve_categories(config: Config, files: DatasetFiles) -> Categories:
    """Return the categories of a dataset for the configured task, their keypoints paired as `data.flip_pairs` says.

    Raises ValueError as `read_categories` does, and for pairs that name no keypoints.
    """
    categories = read_categories(files, resolve_task(config))
    if categories.keypoints is None or config.data.flip_pairs is None:
        return categories
    try:
        return replace(categories, keypoints=categories.keypoints.with_pairs(config.data.flip_pairs))
    except ValueError as error:
        raise ValueError(f"data.flip_pairs: {error}") from None


def configure(detector: Any, config: Config) -> None:
    """Give a detector, in place, the settings that a configuration names; it keeps its others.

    Settings that this kind of detector does not have are skipped, such as proposals of a one-stage detector. Raises
    ValueError for anchors that do not fit its pyramid or its head.
    """
    model, test = config.model, config.test
    own = read_settings(detector)
    wanted: dict[str, Any] = {
        "min_size": model.min_size,
        "max_size": model.max_size,
        "rpn_batch_size_per_image": model.rpn_rois,
        "box_batch_size_per_image": model.box_rois,
        "rpn_pre_nms_top_n_train": model.train_proposals,
        "rpn_post_nms_top_n_train": model.train_proposals,
        "rpn_pre_nms_top_n_test": model.test_proposals,
        "rpn_post_nms_top_n_test": model.test_proposals,
        "topk_candidates": model.test_proposals,
        "box_score_thresh": test.score_threshold,
        "score_thresh": test.score_threshold,
        "box_detections_per_img": test.detections,
        "detections_per_img": test.detections,
    }
    for name in own.keys() & {"rpn_anchor_generator", "anchor_generator"}:
        wanted[name] = _anchors(config, own[name])
    write_settings(detector, {name: value for name, value in wanted.items() if value is not None and name in own})
    check_anchors(detector)


def _anchors(config: Config, own: dict[str, Any]) -> dict[str, Any]:
    """Return a detector's anchors with the configured first size of each level; its other sizes scale alike."""
    sizes, ratios = own["sizes"], own["aspect_ratios"]
    first = config.model.anchor_sizes
    if first:
        if len(first) != len(sizes):
            raise ValueError(
                f"model.anchor_sizes: {first}, expected one for each of the pyramid's {len(sizes)} levels"
            )
        sizes = [[new * size / level[0] for size in level] for new, level in zip(first, sizes, strict=True)]
    if config.model.aspect_ratios:
        ratios = [list(config.model.aspect_ratios)] * len(ratios)
    return {"sizes": sizes, "aspect_ratios": ratios}


def resolve_plan(config: Config) -> PlanLike | None:
    """Return the configured plan, or None for a dense detector."""
    return None if config.model.plan == "none" else config.model.plan


def check_plan(config: Config, weights: Weights | None) -> None:
    """Raise ValueError for a plan that does not fit the body of `weights` (None: the configured body)."""
    plan = resolve_plan(config)
    if plan is not None and (weights is None or not weights.is_compressed):
        structure = weights.structure if weights else resolve_structure(config, num_classes=2)
        load_plan(plan, read_body(template(structure)))


def starting_weights(config: Config) -> Weights | None:
    """Return the detector's or backbone's weights that a run starts from, or None for random ones.

    Raises ValueError if a file is missing, or holds something else than its setting asks for.
    """
    model = config.model
    if model.weights != "none":
        weights = read_weights(model.weights)
        if not weights.is_detector:
            raise ValueError(f"model.weights: {model.weights} is a backbone; give it as model.backbone_weights")
        if weights.structure.kind != KINDS[model.detector]["kind"]:
            found = f"{model.weights} is a {weights.structure.kind}"
            raise ValueError(f"model.weights: {found}, but model.detector is {model.detector}")
        return weights
    if model.backbone_weights == "none":
        return None
    weights = (
        imagenet_weights(model.body) if model.backbone_weights == "imagenet" else read_weights(model.backbone_weights)
    )
    if weights.is_detector:
        raise ValueError(f"model.backbone_weights: {weights.source} is a detector; give it as model.weights")
    return weights
