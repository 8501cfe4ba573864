"""What the shapes of tensors do not tell about a detector: one table of torchvision's constructor arguments.

Each argument stands with the place in a built detector where its value lies, and its type. Reading and writing go
through the same place, so what is saved is what is loaded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

_STRICT = ConfigDict(extra="forbid")


@with_config(_STRICT)
@dataclass(frozen=True)
class Anchors:
    """The anchors of each level of the pyramid: sizes in pixels, and heights in shares of widths."""

    sizes: Annotated[tuple[Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)], ...],
                     Field(min_length=1)]  # fmt: skip
    aspect_ratios: tuple[Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)], ...]

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.aspect_ratios):
            raise ValueError(f"{len(self.sizes)} levels of sizes, {len(self.aspect_ratios)} of aspect_ratios")

    def generator(self) -> AnchorGenerator:
        """torchvision's generator of these anchors."""
        return AnchorGenerator(self.sizes, self.aspect_ratios)


@with_config(_STRICT)
@dataclass(frozen=True)
class Pooling:
    """How regions are pooled: which levels, into (height, width) bins of so many samples a side."""

    featmap_names: tuple[str, ...]
    output_size: tuple[int, int]
    sampling_ratio: int
    canonical_scale: int = 224
    canonical_level: int = 4

    def pooler(self) -> MultiScaleRoIAlign:
        """torchvision's pooler of this kind."""
        values = {**asdict(self), "featmap_names": list(self.featmap_names)}
        return MultiScaleRoIAlign(**values)


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
}
"""By the name of torchvision's argument, where its value stands in a detector, and its type. A detector has those
whose place it has. The last two are no arguments: a `proposal_matcher` of RetinaNet's brings the one, torchvision's
builder of v2 sets the other."""


def read_settings(detector: nn.Module) -> dict[str, Any]:
    """The settings of a detector by the name of the argument, as plain types."""
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
        if isinstance(checked, Anchors):
            checked = checked.generator()
        if isinstance(checked, Pooling):
            checked = checked.pooler()
        owner, _, last = path.rpartition(".")
        place = _follow(detector, owner)
        if isinstance(place, dict):
            place[last] = checked
        else:
            setattr(place, last, checked)


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
    if isinstance(value, AnchorGenerator):
        return {"sizes": _plain(value.sizes), "aspect_ratios": _plain(value.aspect_ratios)}
    if isinstance(value, MultiScaleRoIAlign):
        names = ("featmap_names", "output_size", "sampling_ratio", "canonical_scale", "canonical_level")
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
