"""Builds a configuration's detector, or a classifier, from random or given weights; compresses and restores it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from norton_det.builders.categories import adopt_names, fit_categories
from norton_det.builders.resolve import (
    configure,
    resolve_device,
    resolve_plan,
    resolve_structure,
    resolve_task,
    starting_weights,
)
from norton_det.compression.building import build_around, build_network
from norton_det.compression.compress import CompressionReport
from norton_det.compression.plan import PlanLike
from norton_det.compression.recover import WHOLE, compress_and_recover
from norton_det.config import Config
from norton_det.data.catalog import Categories
from norton_det.data.coco import CocoDataset
from norton_det.data.images import ImageFiles, evenly_spaced
from norton_det.data.reading import FINDINGS
from norton_det.deploy.runtimes import EXPORTED, load_exported
from norton_det.engine import distributed
from norton_det.keypoints import COCO_KEYPOINTS, Keypoints
from norton_det.models.categories import keypoint_count
from norton_det.models.channels import read_body
from norton_det.models.layout import to_channels_last
from norton_det.models.norms import freeze_batch_norms, unfreeze_batch_norms
from norton_det.models.parts import regions
from norton_det.models.persistence import describe, detector_from_weights, origin_of, resnet_from_weights, with_origin
from norton_det.models.predictors import freeze_stages, replace_keypoint_predictor
from norton_det.models.settings import read_settings
from norton_det.models.weights import Weights, read_weights

log = logging.getLogger(__name__)
TOLD = (
    "neck", "rpn", "classification head", "regression head", "box head", "mask head", "keypoint head", WHOLE,
)  # fmt: skip
"""The restored parts behind the body whose errors are logged, beside those of the stages' last blocks."""


@dataclass(frozen=True)
class BuiltModel:
    """Holds a detector or a classifier, and the report of its compression if it was compressed here."""

    model: Any
    report: CompressionReport | None = None

    def description(self, config: Config) -> dict[str, Any]:
        """Return what a checkpoint says of this network, plain types only."""
        return {**describe(self.model), "config": config.model_dump(mode="json")}


@dataclass(frozen=True)
class Recovery:
    """Says how a network that is compressed at the start is restored: on which images (none: not at all), on which
    device, and the file that keeps finished parts."""

    images: Sequence[torch.Tensor] = ()
    device: torch.device | None = None
    unfinished: Path | None = None


def unfinished_recovery(config: Config) -> Path:
    """Return the file that keeps the finished parts of a recovery before training, until the run has ended."""
    return Path(config.output_dir) / "recovery.pth"


def recovery_images(config: Config, dataset: CocoDataset) -> ImageFiles:
    """Return the training images on which a network that is compressed at the start is restored, if any are wanted.

    Only the main process restores; `build_training` copies the result to the others.
    """
    count = config.model.recover_images if distributed.is_main() else 0
    return ImageFiles(evenly_spaced([*dataset.paths], count) if count else [])


def build_detector(
    config: Config,
    categories: Categories,
    weights: Weights | None,
    for_training: bool = True,
    images: Sequence[torch.Tensor] = (),
) -> BuiltModel:
    """Build the configured detector for the given categories and their keypoints from `weights` (None: random).

    Dense weights are compressed by the plan, and restored on `images`, if there are any; finished parts are kept in
    output_dir/recovery.pth. Compressed weights bring their own structure. If the weights know other categories, the
    predictors keep the common ones; if they know another number of keypoints, the keypoint predictor starts afresh.
    Without `for_training` the weights' categories stay, and another number of keypoints raises ValueError.
    """
    torch.manual_seed(config.seed)
    recovery = Recovery(images, resolve_device(config), unfinished_recovery(config))
    keypoints = categories.keypoints or COCO_KEYPOINTS
    if weights is not None and weights.is_detector:
        built = _from_detector(config, weights, recovery)
    else:
        built = _from_backbone(config, len(categories.names), keypoints, weights, recovery)
        built.model.categories, built.model.category_ids = list(categories.names), list(categories.ids)
    detector = built.model
    (fit_categories if for_training else adopt_names)(detector, categories, config.model.weights)
    if "keypoint" in regions(detector):
        _fit_keypoints(config.model.weights, detector, keypoints, for_training)
    _configured(detector, config)
    return built


def resumed_detector(config: Config, state: Mapping[str, Any]) -> BuiltModel:
    """Build the detector of a checkpoint, with the settings of the configuration: nothing is compressed again."""
    weights = Weights(f"--resume: {config.output_dir}/checkpoints", state["model"], dict(state))
    return BuiltModel(_configured(detector_from_weights(weights), config))


def _configured(detector: Any, config: Config) -> Any:
    """Give a detector the configured settings, frozen stages and norms, and its memory layout, in place."""
    configure(detector, config)
    freeze_stages(detector, config.model.trainable_stages)
    (freeze_batch_norms if config.model.norm == "frozen" else unfreeze_batch_norms)(detector)
    detector.to(memory_format=torch.contiguous_format)  # the heads' losses want contiguous outputs
    to_channels_last(detector.backbone)
    return detector


def build_evaluated(config: Config, categories: Categories) -> Any:
    """Load the detector of `model.weights`, a weights file or an exported one, for evaluation on these categories.

    Its own categories stay; `evaluated_categories` matches them with the data's. Raises ValueError if it does not do
    the configured task.
    """
    path = config.model.weights
    if Path(path).suffix not in EXPORTED:
        return build_detector(config, categories, starting_weights(config), for_training=False).model
    detector = load_exported(path).for_many()
    adopt_names(detector, categories, path)
    wanted = FINDINGS[resolve_task(config)]
    if wanted not in detector.outputs:
        raise ValueError(f"model.weights: {path} gives {', '.join(detector.outputs)}, expected {wanted} too")
    return detector


def build_teacher(config: Config, student: Any) -> Any:
    """Load the detector of `model.teacher`, or return None if none is named.

    Raises ValueError if the file holds no detector, or its pyramid has other levels or channels than the student's.
    """
    if config.model.teacher == "none":
        return None
    if Path(config.model.teacher).suffix in EXPORTED:
        raise ValueError(f"model.teacher: {config.model.teacher} is exported and has no features to follow")
    weights = read_weights(config.model.teacher)
    if not weights.is_detector:
        raise ValueError(f"model.teacher: {weights.source} is a backbone, expected a detector")
    teacher = detector_from_weights(weights, norm_eps=config.model.norm_eps)
    found, expected = _describe_pyramid(teacher), _describe_pyramid(student)
    if found != expected:
        raise ValueError(f"model.teacher: the pyramid of {weights.source} has {found}, expected {expected}")
    teacher.backbone.to(memory_format=torch.channels_last)
    return teacher


def _describe_pyramid(detector: Any) -> str:
    settings = read_settings(detector)
    anchors = next(value for name, value in settings.items() if name.endswith("anchor_generator"))
    first = 1 + int(next(iter(detector.backbone.body.return_layers)).removeprefix("layer"))
    return f"{detector.backbone.out_channels} channels on P{first} to P{first + len(anchors['sizes']) - 1}"


def backbone_from_weights(
    weights: Weights,
    plan: PlanLike | None,
    strict: bool = True,
    recovery: Recovery | None = None,
) -> BuiltModel:
    """Build a ResNet classifier from weights.

    Dense weights are compressed by `plan`, and restored as `recovery` says; compressed ones bring their own
    structure. With `strict` every tensor must be there. Raises ValueError if the weights or the plan do not fit.
    """
    network = resnet_from_weights(weights, strict)
    if weights.is_compressed:
        log.info("%s is compressed already: its structure is taken", weights.source)
    if weights.is_compressed or plan is None:
        return BuiltModel(network)
    return _compressed(network, plan, weights, recovery or Recovery())


def random_pair(config: Config) -> dict[str, Any]:
    """Build the configured detector dense and compressed, with random weights and COCO's number of classes.

    They are for counting and timing, which need neither weights nor data. A configuration without a plan gives the
    dense one alone. `model.weights` is not read.
    """
    classes = 2 if resolve_task(config) == "keypoints" else 91
    plan = resolve_plan(config)
    plans = {"dense": None, **({"compressed": plan} if plan else {})}
    torch.manual_seed(config.seed)
    pair = {}
    for name, plan in plans.items():
        pair[name] = build_network(resolve_structure(config, classes), plan, config.model.width)
        configure(pair[name], config)
    return pair


def _from_detector(config: Config, weights: Weights, recovery: Recovery) -> BuiltModel:
    detector = detector_from_weights(weights, norm_eps=config.model.norm_eps)
    _warn_of_another_size(config, weights)
    if weights.is_compressed:
        log.info("%s is compressed already: its structure is taken, model.plan is not applied", weights.source)
        return BuiltModel(detector)
    plan = resolve_plan(config)
    return _compressed(detector, plan, weights, recovery) if plan else BuiltModel(detector)


def _warn_of_another_size(config: Config, weights: Weights) -> None:
    told, configured = weights.told.get("min_size"), config.model.min_size
    if told and configured and told[-1] != configured[-1]:
        line = "model.min_size: %s is made for images of %d pixels, here they get %d; none leaves them as they are"
        log.warning(line, weights.source, told[-1], configured[-1])


def _from_backbone(
    config: Config, num_classes: int, keypoints: Keypoints, weights: Weights | None, recovery: Recovery
) -> BuiltModel:
    plan = resolve_plan(config)
    if weights is None:
        structure = resolve_structure(config, num_classes, keypoints=keypoints)
        return BuiltModel(build_network(structure, plan, config.model.width))
    backbone = backbone_from_weights(weights, plan, False, recovery)
    structure = resolve_structure(config, num_classes, weights.structure.body, keypoints)
    return BuiltModel(build_around(backbone.model, structure, plan), backbone.report)


def _compressed(model: nn.Module, plan: PlanLike, weights: Weights, recovery: Recovery) -> BuiltModel:
    compressed, report = compress_and_recover(
        model, plan, recovery.images, device=recovery.device, checkpoint=recovery.unfinished
    )
    if report.recovery:
        body = read_body(compressed)
        told = {*TOLD, *(body.last_block(stage).name for stage in body.stages)}
        errors = ", ".join(f"{p.name} {p.before:.2f} -> {p.after:.2f}" for p in report.recovery if p.name in told)
        log.info("restored on %d images: %s", len(recovery.images), errors)
    source = str(Path(weights.source).resolve())
    return BuiltModel(with_origin(compressed, replace(origin_of(compressed), dense_weights=source)), report)


def _fit_keypoints(path: str, detector: Any, keypoints: Keypoints, for_training: bool) -> None:
    """Make a keypoint detector one for these keypoints; its predictor starts afresh if their number differs."""
    known = keypoint_count(detector)
    if known != keypoints.count:
        if not for_training:
            raise ValueError(f"model.weights: {path} knows {known} keypoints, expected the data's {keypoints.count}")
        log.info("weights know %d keypoints: their predictor starts afresh for %d", known, keypoints.count)
        replace_keypoint_predictor(detector, keypoints.count)
    detector.keypoints = keypoints
