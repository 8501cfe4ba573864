"""A configuration's detector, or a classifier, from random or given weights, compressed and restored on the spot."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from tqdm import tqdm

from norton_det.builders.resolve import TASKS, resolve_device, resolve_plan, starting_weights
from norton_det.compression.compress import CompressionReport
from norton_det.compression.plan import CompressionPlan
from norton_det.compression.recover import compress_and_recover
from norton_det.config import Config
from norton_det.data.catalog import Categories, DatasetFiles
from norton_det.data.images import ImageFiles, find_images
from norton_det.data.keypoints import COCO_KEYPOINTS, Keypoints
from norton_det.deploy.runtimes import EXPORTED, ExportedDetector, load_exported
from norton_det.engine import distributed
from norton_det.engine.checkpoint import describe
from norton_det.models.detectors import (
    BODY,
    DetectorSettings,
    DetectorSpec,
    build_from_spec,
    freeze_stages,
    replace_keypoint_predictor,
    replace_predictors,
)
from norton_det.models.norms import freeze_batch_norms, unfreeze_batch_norms
from norton_det.models.resnet import LAST_BLOCKS, ResNetSpec
from norton_det.models.weights import (
    Weights,
    default_categories,
    detector_from_weights,
    read_weights,
    resnet50_from_weights,
)

log = logging.getLogger(__name__)
RESTORED = (*LAST_BLOCKS, "neck", "rpn", "box head", "mask head", "keypoint head")
"""The restored parts whose errors are told."""


@dataclass(frozen=True)
class BuiltModel:
    """A detector or a classifier, and where it comes from.

    Attributes:
        model: the network.
        plan: by which it was compressed; None: it is dense.
        kept: the dense channels that compression kept.
        report: of a compression on the spot.
        dense_weights: the file that compressed weights were made of.
    """

    model: Any
    plan: CompressionPlan | None = None
    kept: dict[str, list[int]] = field(default_factory=dict)
    report: CompressionReport | None = None
    dense_weights: str | None = None

    def description(self, config: Config) -> dict[str, Any]:
        """What a checkpoint says of this detector, plain types only."""
        return {
            **describe(self.model),
            "config": config.model_dump(mode="json"),
            "plan": self.plan.to_dict() if self.plan else None,
            "kept": self.kept,
            "dense_weights": self.dense_weights,
        }


@dataclass(frozen=True)
class Recovery:
    """What a network compressed on the spot is restored on (no images: it is not), where, and the file that keeps
    finished parts."""

    images: Sequence[torch.Tensor] = ()
    device: torch.device | None = None
    unfinished: Path | None = None


def recovery_images(config: Config, files: DatasetFiles) -> ImageFiles:
    """The training images that a network compressed at the start is restored on; none where none are wanted.

    The main process alone restores, `build_training` gives the others what came of it.
    """
    count = config.model.recover_images if distributed.is_main() else 0
    return ImageFiles(find_images(files.images, count) if count else [])


def build_detector(
    config: Config,
    categories: Categories,
    weights: Weights | None,
    for_training: bool = True,
    images: Sequence[torch.Tensor] = (),
) -> BuiltModel:
    """The configured detector for the given categories and their keypoints (None: COCO's), started from `weights`
    (None: random). A keypoint detector carries them as `.keypoints`.

    Dense weights are compressed by the plan on the spot, and restored on `images`, where there are any, finished
    parts kept in output_dir/recovery.pth; compressed ones bring their own structure. Where they know other categories
    the predictors start afresh, where another number of keypoints theirs; not `for_training` either is a ValueError.
    """
    torch.manual_seed(config.seed)
    keypoints = categories.keypoints or COCO_KEYPOINTS
    if weights is not None and weights.is_detector:
        built = _from_detector(config, weights, images)
    else:
        built = _from_backbone(config, len(categories.names), keypoints.count, weights, images)
    detector = built.model
    if not hasattr(detector, "categories"):
        detector.categories, detector.category_ids = list(categories.names), list(categories.ids)
    if not for_training:
        _check_categories(config.model.weights, detector, categories)
    if not _knows(detector, categories):
        known, wanted = len(detector.categories) - 1, len(categories.names) - 1
        log.info("weights know %d other categories: the predictors start afresh for %d", known, wanted)
        replace_predictors(detector, len(categories.names))
        detector.categories, detector.category_ids = list(categories.names), list(categories.ids)
    if config.model.detector == "keypoint_rcnn":
        _fit_keypoints(config.model.weights, detector, keypoints, for_training)
    freeze_stages(detector, config.model.trainable_stages)
    (freeze_batch_norms if config.model.norm == "frozen" else unfreeze_batch_norms)(detector)
    detector.backbone.to(memory_format=torch.channels_last)  # faster; the heads' losses want contiguous outputs
    return built


def build_evaluated(config: Config, categories: Categories) -> GeneralizedRCNN | ExportedDetector:
    """The detector of `model.weights`, a weights file or an exported one, to be evaluated on the given categories.

    Raises ValueError where it knows other categories, or does not do the configured task.
    """
    path = config.model.weights
    if Path(path).suffix not in EXPORTED:
        return build_detector(config, categories, starting_weights(config), for_training=False).model
    detector = load_exported(path)
    _check_categories(path, detector, categories)
    wanted = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}[TASKS[config.model.detector]]
    if wanted not in detector.outputs:
        raise ValueError(f"model.weights: {path} gives {', '.join(detector.outputs)}, expected {wanted} too")
    return detector


def build_teacher(config: Config, student: GeneralizedRCNN) -> GeneralizedRCNN | None:
    """The detector of `model.teacher`, if one is named.

    Raises ValueError where the file holds none, or one whose pyramid has other channels than the student's.
    """
    if config.model.teacher == "none":
        return None
    weights = read_weights(config.model.teacher)
    if not weights.is_detector:
        raise ValueError(f"model.teacher: {weights.source} is a backbone, expected a detector")
    teacher = detector_from_weights(weights)
    found, expected = teacher.backbone.out_channels, student.backbone.out_channels
    if found != expected:
        raise ValueError(f"model.teacher: the pyramid of {weights.source} has {found} channels, expected {expected}")
    teacher.backbone.to(memory_format=torch.channels_last)
    return teacher


def backbone_from_weights(
    weights: Weights,
    plan: CompressionPlan | None,
    strict: bool = True,
    recovery: Recovery | None = None,
) -> BuiltModel:
    """A ResNet-50 classifier.

    Dense weights are compressed by `plan` on the spot, and restored as `recovery` says; compressed ones bring their
    own structure. With `strict` every tensor must be there. Raises ValueError where weights or plan do not fit.
    """
    network = resnet50_from_weights(weights, strict)
    if weights.is_compressed:
        log.info("%s is compressed already: its structure is taken", weights.source)
        return _as_stored(network, weights)
    return _compressed(network, plan, weights, recovery or Recovery()) if plan else BuiltModel(network)


def random_pair(config: Config) -> dict[str, BuiltModel]:
    """The configured detector dense and compressed, with random weights and COCO's number of classes: for
    counting and timing, which need neither weights nor data.

    A configuration without a plan gives the dense one alone. `model.weights` is not read.
    """
    classes = 2 if config.model.detector == "keypoint_rcnn" else 91
    plan = resolve_plan(config)
    plans = {"dense": None, "compressed": plan} if plan else {"dense": None}
    torch.manual_seed(config.seed)
    pair = {}
    for name, p in plans.items():
        detector = build_from_spec(_spec(config, classes, _body(config, p), p))
        detector.categories, detector.category_ids = default_categories(classes)
        pair[name] = BuiltModel(detector, p)
    return pair


def detector_settings(config: Config) -> DetectorSettings:
    """What a configuration says that tensor shapes do not."""
    model, test = config.model, config.test
    return DetectorSettings(
        min_size=tuple(model.min_size),
        max_size=model.max_size,
        anchor_sizes=tuple(model.anchor_sizes),
        rpn_rois=model.rpn_rois,
        train_proposals=model.train_proposals,
        test_proposals=model.test_proposals,
        box_rois=model.box_rois,
        score_threshold=test.score_threshold,
        detections=test.detections,
    )


def _from_detector(config: Config, weights: Weights, images: Sequence[torch.Tensor]) -> BuiltModel:
    plan = resolve_plan(config)
    detector = detector_from_weights(weights, detector_settings(config))
    kind = DetectorSpec.from_state_dict(weights.state).kind
    if kind != config.model.detector:
        raise ValueError(
            f"model.weights: {weights.source} is a {kind}, but model.detector is {config.model.detector}"
        )
    if weights.is_compressed:
        log.info("%s is compressed already: its structure is taken, model.plan is not applied", weights.source)
        return _as_stored(detector, weights)
    return _compressed(detector, plan, weights, _recovery(config, images)) if plan else BuiltModel(detector)


def _from_backbone(
    config: Config, num_classes: int, num_keypoints: int, weights: Weights | None, images: Sequence[torch.Tensor]
) -> BuiltModel:
    plan = resolve_plan(config)
    if weights is None:
        spec = _spec(config, num_classes, _body(config, plan), plan, num_keypoints)
        return BuiltModel(build_from_spec(spec), plan)
    backbone = backbone_from_weights(weights, plan, False, _recovery(config, images))
    body = backbone.model.state_dict()
    detector = build_from_spec(_spec(config, num_classes, ResNetSpec.from_state_dict(body), plan, num_keypoints))
    state = {f"{BODY}{key}": value for key, value in body.items() if not key.startswith("fc.")}
    detector.load_state_dict({**detector.state_dict(), **state})
    return replace(backbone, model=detector, dense_weights=None)  # that one is no detector


def _body(config: Config, plan: CompressionPlan | None) -> ResNetSpec:
    dense = ResNetSpec.dense(config.model.width)
    return plan.apply(dense) if plan else dense


def _spec(
    config: Config,
    num_classes: int,
    body: ResNetSpec,
    plan: CompressionPlan | None,
    num_keypoints: int = COCO_KEYPOINTS.count,
) -> DetectorSpec:
    model = config.model
    return DetectorSpec(
        kind=model.detector,
        num_classes=num_classes,
        body=body,
        fpn_channels=model.fpn_channels,
        box_channels=model.box_channels,
        mask_channels=model.mask_channels,
        keypoint_channels=model.keypoint_channels,
        num_keypoints=num_keypoints,
        part_ranks=plan.parts if plan else {},
        settings=detector_settings(config),
    )


def _as_stored(model: nn.Module, weights: Weights) -> BuiltModel:
    """A model of compressed weights, with what these tell of themselves, as far as they do."""
    plan, told = weights.metadata.get("plan"), weights.metadata
    return BuiltModel(
        model,
        CompressionPlan.from_dict(plan) if isinstance(plan, Mapping) else None,
        told.get("kept", {}),
        dense_weights=told.get("dense_weights"),
    )


def _recovery(config: Config, images: Sequence[torch.Tensor]) -> Recovery:
    return Recovery(images, resolve_device(config), Path(config.output_dir) / "recovery.pth")


def _compressed(model: nn.Module, plan: CompressionPlan, weights: Weights, recovery: Recovery) -> BuiltModel:
    with tqdm(total=len(plan.ranks), desc="compress", disable=not distributed.is_main()) as bar:
        compressed, report = compress_and_recover(
            model,
            plan,
            recovery.images,
            device=recovery.device,
            progress=lambda layer: bar.update(),
            checkpoint=recovery.unfinished,
        )
    if report.recovery:
        told = [part for part in report.recovery if part.name in RESTORED]
        errors = ", ".join(f"{part.name} {part.before:.2f} -> {part.after:.2f}" for part in told)
        log.info("restored on %d images: %s", len(recovery.images), errors)
    return BuiltModel(compressed, plan, report.kept, report, dense_weights=str(Path(weights.source).resolve()))


def _fit_keypoints(path: str, detector: GeneralizedRCNN, keypoints: Keypoints, for_training: bool) -> None:
    """Make a keypoint detector one for these keypoints, its predictor afresh where it has another number of them."""
    known = detector.roi_heads.keypoint_predictor.kps_score_lowres.out_channels
    if known != keypoints.count:
        if not for_training:
            raise ValueError(f"model.weights: {path} knows {known} keypoints, expected the data's {keypoints.count}")
        log.info("weights know %d keypoints: their predictor starts afresh for %d", known, keypoints.count)
        replace_keypoint_predictor(detector, keypoints.count)
    detector.keypoints = keypoints


def _knows(detector: GeneralizedRCNN | ExportedDetector, categories: Categories) -> bool:
    return (detector.categories, detector.category_ids) == (list(categories.names), list(categories.ids))


def _check_categories(path: str, detector: GeneralizedRCNN | ExportedDetector, categories: Categories) -> None:
    if not _knows(detector, categories):
        known, wanted = len(detector.categories) - 1, len(categories.names) - 1
        raise ValueError(f"model.weights: {path} knows {known} other categories than the data's {wanted}")
