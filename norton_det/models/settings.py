"""Lists what the shapes of tensors do not tell about a detector: one table of torchvision's constructor arguments.

Each argument has its place in a built detector, where its value lies, and its type. Reading and writing go through
the same place, so what is saved is what is loaded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from norton_det.models.variants import TRANSFORMS, ExactAnchors, Images, LevelRoIAlign

_STRICT = ConfigDict(extra="forbid")


@with_config(_STRICT)
@dataclass(frozen=True)
class Anchors:
    """Sets the anchors of each level of the pyramid: sizes in pixels, and aspect ratios, heights in shares of widths.

    With `strides`, pixels of the image a level, anchors are not rounded, and the first centre lies at `offset`
    strides.
    """

    sizes: Annotated[tuple[Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)], ...],
                     Field(min_length=1)]  # fmt: skip
    aspect_ratios: tuple[Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)], ...]
    strides: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    offset: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.aspect_ratios):
            raise ValueError(f"{len(self.sizes)} levels of sizes, {len(self.aspect_ratios)} of aspect_ratios")
        if self.strides is not None and len(self.strides) != len(self.sizes):
            raise ValueError(f"{len(self.sizes)} levels of sizes, {len(self.strides)} of strides")

    def module(self) -> AnchorGenerator:
        """Build the generator of these anchors: torchvision's where `strides` is None."""
        if self.strides is None:
            return AnchorGenerator(self.sizes, self.aspect_ratios)
        return ExactAnchors(self.sizes, self.aspect_ratios, self.strides, self.offset)


@with_config(_STRICT)
@dataclass(frozen=True)
class Pooling:
    """Sets how regions are pooled: from which levels, and into (height, width) bins of `sampling_ratio` samples a
    side, where 0 means as many as fit. `aligned` samples lie half a pixel nearer to the corner than torchvision's."""

    featmap_names: tuple[str, ...]
    output_size: tuple[int, int]
    sampling_ratio: int
    canonical_scale: int = 224
    canonical_level: int = 4
    aligned: bool = False

    def module(self) -> MultiScaleRoIAlign:
        """Build the pooler of this kind: torchvision's where it is not aligned."""
        names, size, ratio, *_ = asdict(self).values()
        canonical: dict[str, Any] = {"canonical_scale": self.canonical_scale, "canonical_level": self.canonical_level}
        if self.aligned:
            return LevelRoIAlign(list(names), size, ratio, aligned=True, **canonical)
        return MultiScaleRoIAlign(list(names), size, ratio, **canonical)


Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Colour: TypeAlias = tuple[float, float, float]
Weights: TypeAlias = tuple[float, float, float, float]
Lengths: TypeAlias = Annotated[tuple[Count, ...], Field(min_length=1)]

TABLE: dict[str, tuple[str, Any]] = {
    "min_size": ("transform.min_size", Lengths),
    "max_size": ("transform.max_size", Count),
    "image_mean": ("transform.image_mean", Colour),
    "image_std": ("transform.image_std", Colour),
    "size_divisible": ("transform.size_divisible", Count),
    "fixed_size": ("transform.fixed_size", tuple[Count, Count] | None),
    "_skip_resize": ("transform._skip_resize", bool),
    "images": ("transform", Images),
    "rpn_min_size": ("rpn.min_size", Annotated[float, Field(ge=0)]),
    "rpn_anchor_generator": ("rpn.anchor_generator", Anchors),
    "rpn_pre_nms_top_n_train": ("rpn._pre_nms_top_n.training", Count),
    "rpn_pre_nms_top_n_test": ("rpn._pre_nms_top_n.testing", Count),
    "rpn_post_nms_top_n_train": ("rpn._post_nms_top_n.training", Count),
    "rpn_post_nms_top_n_test": ("rpn._post_nms_top_n.testing", Count),
    "rpn_nms_thresh": ("rpn.nms_thresh", Share),
    "rpn_fg_iou_thresh": ("rpn.proposal_matcher.high_threshold", Share),
    "rpn_bg_iou_thresh": ("rpn.proposal_matcher.low_threshold", Share),
    "rpn_batch_size_per_image": ("rpn.fg_bg_sampler.batch_size_per_image", Count),
    "rpn_positive_fraction": ("rpn.fg_bg_sampler.positive_fraction", Share),
    "rpn_score_thresh": ("rpn.score_thresh", Share),
    "box_roi_pool": ("roi_heads.box_roi_pool", Pooling),
    "box_score_thresh": ("roi_heads.score_thresh", Share),
    "box_nms_thresh": ("roi_heads.nms_thresh", Share),
    "box_detections_per_img": ("roi_heads.detections_per_img", Count),
    "box_fg_iou_thresh": ("roi_heads.proposal_matcher.high_threshold", Share),
    "box_bg_iou_thresh": ("roi_heads.proposal_matcher.low_threshold", Share),
    "box_batch_size_per_image": ("roi_heads.fg_bg_sampler.batch_size_per_image", Count),
    "box_positive_fraction": ("roi_heads.fg_bg_sampler.positive_fraction", Share),
    "bbox_reg_weights": ("roi_heads.box_coder.weights", Weights),
    "mask_roi_pool": ("roi_heads.mask_roi_pool", Pooling),
    "keypoint_roi_pool": ("roi_heads.keypoint_roi_pool", Pooling),
    "anchor_generator": ("anchor_generator", Anchors),
    "score_thresh": ("score_thresh", Share),
    "nms_thresh": ("nms_thresh", Share),
    "detections_per_img": ("detections_per_img", Count),
    "topk_candidates": ("topk_candidates", Count),
    "fg_iou_thresh": ("proposal_matcher.high_threshold", Share),
    "bg_iou_thresh": ("proposal_matcher.low_threshold", Share),
    "center_sampling_radius": ("center_sampling_radius", Annotated[float, Field(gt=0)]),
    "allow_low_quality_matches": ("proposal_matcher.allow_low_quality_matches", bool),
    "box_loss": ("head.regression_head._loss_type", str),
    "clips_late": ("clips_late", bool),
}
"""The place of each argument's value in a detector and its type, by the name of torchvision's argument. A detector
has the settings whose place it has. Some are no arguments: a `proposal_matcher` of RetinaNet's brings
`allow_low_quality_matches`, torchvision's builder of v2 sets `box_loss`, `rpn_min_size` is fixed there, and `images`
and `clips_late` are for what `models/variants.py` computes otherwise."""


def read_settings(detector: nn.Module) -> dict[str, Any]:
    """Return the settings of a detector by the name of the argument, as plain types."""
    return {name: _plain(value) for name, value in _values(detector)}


def write_settings(detector: nn.Module, settings: Mapping[str, Any]) -> None:
    """Set what `settings` names, in place.

    Raises ValueError naming a setting that this detector does not have, or a value that it cannot have.
    """
    known = dict(_values(detector))
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"{name}: no setting of a {type(detector).__name__}, which has {', '.join(known)}")
        path, kind = TABLE[name]
        checked = _checked(name, kind, value)
        if isinstance(checked, Anchors | Pooling):
            checked = checked.module()
        elif name == "images":
            checked = _transform(checked, known[name])
        owner, _, last = path.rpartition(".")
        place = _follow(detector, owner)
        if isinstance(place, dict):
            place[last] = checked
        else:
            setattr(place, last, checked)


def _transform(images: Images, old: Any) -> GeneralizedRCNNTransform:
    """Build the transform of a kind with the settings of another one."""
    sizes, colours = (old.min_size, old.max_size), (old.image_mean, old.image_std)
    new = TRANSFORMS[images](*sizes, *colours, old.size_divisible, old.fixed_size, _skip_resize=old._skip_resize)
    return new.train(old.training)


def _values(detector: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, (path, _) in TABLE.items():
        try:
            value = _follow(detector, path)
        except (AttributeError, KeyError):
            continue
        if value is not None or name == "fixed_size":  # a head that is not there is None
            yield name, value


def _follow(owner: Any, path: str) -> Any:
    for part in path.split(".") if path else []:
        owner = owner[part] if isinstance(owner, dict) else getattr(owner, part)
    return owner


def _checked(name: str, kind: Any, value: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (name, *first["loc"])))
        raise ValueError(f"{where}: {first['msg']}, got {first['input']!r}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, AnchorGenerator | MultiScaleRoIAlign):
        kind = Anchors if isinstance(value, AnchorGenerator) else Pooling
        return {name: _plain(getattr(value, name)) for name in kind.__dataclass_fields__ if hasattr(value, name)}
    if isinstance(value, GeneralizedRCNNTransform):
        return next((name for name, kind in TRANSFORMS.items() if type(value) is kind), "torchvision")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
