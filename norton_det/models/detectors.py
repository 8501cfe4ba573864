"""Faster, Mask and Keypoint R-CNN: a ResNet-50 body of any structure under torchvision's pyramid and heads."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from norton_det.layers.cp_conv import CPConv2d
from norton_det.layers.low_rank_linear import LowRankLinear
from norton_det.models.resnet import STAGES, ResNetSpec, build_resnet50

DetectorKind = Literal["faster_rcnn", "mask_rcnn", "keypoint_rcnn"]
KINDS: tuple[DetectorKind, ...] = get_args(DetectorKind)
BODY = "backbone.body."
LATERALS = tuple(f"backbone.fpn.inner_blocks.{i}.0" for i in range(len(STAGES)))
"""The pyramid's lateral 1x1 convolutions: each reads the output of one stage."""
PARTS = {
    "neck": tuple(f"backbone.fpn.layer_blocks.{i}.0" for i in range(len(STAGES))),
    "rpn": ("rpn.head.conv.0.0",),
    "box_head": ("roi_heads.box_head.fc6", "roi_heads.box_head.fc7"),
    "mask_head": tuple(f"roi_heads.mask_head.{i}.0" for i in range(4)),
    "keypoint_head": tuple(f"roi_heads.keypoint_head.{2 * i}" for i in range(8)),
}
"""The layers beside the body's that a plan may factorise, by part: 3x3 convolutions, and the box head's two linear
layers. A detector has those of its heads."""


@dataclass(frozen=True)
class DetectorSettings:
    """What tensor shapes do not tell about a detector. Defaults are torchvision's; sizes in pixels.

    `min_size` holds several lengths for multi-scale training; evaluation uses the last.
    """

    min_size: tuple[int, ...] = (800,)
    max_size: int = 1333
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    rpn_rois: int = 256
    train_proposals: int = 2000
    test_proposals: int = 1000
    box_rois: int = 512
    score_threshold: float = 0.05
    detections: int = 100

    def __post_init__(self) -> None:
        if not self.min_size or min(*self.min_size, self.max_size, *self.anchor_sizes) < 1:
            raise ValueError(f"sizes in pixels, at least 1: {self.min_size}, {self.max_size}, {self.anchor_sizes}")
        if len(self.anchor_sizes) != len(STAGES) + 1:
            raise ValueError(f"anchor_sizes: {self.anchor_sizes}, expected one for each of the pyramid's five levels")


@dataclass(frozen=True)
class DetectorSpec:
    """The structure of a detector. `num_classes` counts the background, as in torchvision.

    `part_ranks`: by name in PARTS, the rank of that part's layers; a part that is not named is dense.
    """

    kind: DetectorKind
    num_classes: int
    body: ResNetSpec
    fpn_channels: int = 256
    box_channels: int = 1024
    mask_channels: int = 256
    keypoint_channels: int = 512
    num_keypoints: int = 17
    part_ranks: Mapping[str, int] = field(default_factory=dict)
    settings: DetectorSettings = field(default_factory=DetectorSettings)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], settings: DetectorSettings | None = None) -> "DetectorSpec":
        """Read the structure from tensor shapes under torchvision's names.

        Raises ValueError where the tensors are not those of a ResNet-50 FPN detector.
        """
        if "roi_heads.box_predictor.cls_score.weight" not in state:
            raise ValueError("not a Faster, Mask or Keypoint R-CNN: it has no box predictor")
        body = {key.removeprefix(BODY): value for key, value in state.items() if key.startswith(BODY)}
        mask = _outputs(state, PARTS["mask_head"][0])
        keypoint = _outputs(state, PARTS["keypoint_head"][0])
        defaults = cls("faster_rcnn", 2, ResNetSpec.dense())
        predictor = state.get("roi_heads.keypoint_predictor.kps_score_lowres.bias")
        return cls(
            kind="mask_rcnn" if mask else "keypoint_rcnn" if keypoint else "faster_rcnn",
            num_classes=len(state["roi_heads.box_predictor.cls_score.weight"]),
            body=ResNetSpec.from_state_dict(body),
            fpn_channels=len(state[f"{LATERALS[0]}.weight"]),
            box_channels=_outputs(state, PARTS["box_head"][1]) or defaults.box_channels,
            mask_channels=mask or defaults.mask_channels,
            keypoint_channels=keypoint or defaults.keypoint_channels,
            num_keypoints=len(predictor) if predictor is not None else defaults.num_keypoints,
            part_ranks=_part_ranks(state),
            settings=settings or defaults.settings,
        )

    def uncompressed(self, width: float) -> "DetectorSpec":
        """The dense detector of the same kind and sizes, its body `width` times as wide as the ordinary one."""
        return replace(self, body=ResNetSpec.dense(width), part_ranks={})


def _outputs(state: Mapping[str, Tensor], layer: str) -> int:
    """Output channels of a layer, dense or factorised; 0 where it is not there."""
    for name, dim in ((f"{layer}.weight", 0), (f"{layer}.channel", 1), (f"{layer}.up.weight", 0)):
        if name in state:
            return state[name].shape[dim]
    return 0


def _part_ranks(state: Mapping[str, Tensor]) -> dict[str, int]:
    ranks = {}
    for part, (first, *_) in PARTS.items():
        for name in (f"{first}.channel", f"{first}.down.weight"):
            if name in state:
                ranks[part] = len(state[name])
    return ranks


def build_from_spec(spec: DetectorSpec, eps: float = 1e-5) -> GeneralizedRCNN:
    """A detector with random weights and trainable BatchNorm of that eps in its body.

    Raises ValueError for a kind that is not one of KINDS.
    """
    if spec.kind not in KINDS:
        raise ValueError(f"detector {spec.kind!r} is not one of {', '.join(KINDS)}")
    body = build_resnet50(spec.body, num_classes=1, eps=eps)
    builder = {"faster_rcnn": _faster_rcnn, "mask_rcnn": _mask_rcnn, "keypoint_rcnn": _keypoint_rcnn}[spec.kind]
    detector = builder(_with_pyramid(body, spec), spec)
    for part, rank in spec.part_ranks.items():
        for name in part_layers(detector, part):
            detector.set_submodule(name, _factorised(detector.get_submodule(name), rank))
    return detector


def part_layers(model: nn.Module, part: str) -> list[str]:
    """The names of a part's layers that a model has: none in a classifier, or without that head."""
    modules = dict(model.named_modules())
    return [name for name in PARTS[part] if name in modules]


def _factorised(layer: nn.Module, rank: int) -> nn.Module:
    """What stands at a dense layer's place, with random weights."""
    if isinstance(layer, nn.Linear):
        return LowRankLinear(layer.in_features, layer.out_features, min(rank, layer.in_features, layer.out_features))
    assert isinstance(layer, nn.Conv2d)
    return CPConv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        rank,
        padding=layer.padding,  # type: ignore[arg-type]
        bias=layer.bias is not None,
    )


def replace_predictors(detector: GeneralizedRCNN, num_classes: int) -> None:
    """Give the box, mask and keypoint predictors fresh weights for `num_classes` (background included)."""
    heads = detector.roi_heads
    heads.box_predictor = FastRCNNPredictor(heads.box_predictor.cls_score.in_features, num_classes)
    if heads.mask_predictor is not None:
        inputs, hidden = heads.mask_predictor.conv5_mask.weight.shape[:2]
        heads.mask_predictor = MaskRCNNPredictor(inputs, hidden, num_classes)
    if heads.keypoint_predictor is not None:
        inputs, keypoints = heads.keypoint_predictor.kps_score_lowres.weight.shape[:2]
        heads.keypoint_predictor = KeypointRCNNPredictor(inputs, keypoints)


def replace_keypoint_predictor(detector: GeneralizedRCNN, num_keypoints: int) -> None:
    """Give a Keypoint R-CNN's keypoint predictor fresh weights for `num_keypoints`."""
    inputs = detector.roi_heads.keypoint_predictor.kps_score_lowres.in_channels
    detector.roi_heads.keypoint_predictor = KeypointRCNNPredictor(inputs, num_keypoints)


def freeze_stages(detector: GeneralizedRCNN, trainable_stages: int) -> None:
    """Train only the last `trainable_stages` of the body's five (stem, layer1 .. layer4), as torchvision counts.

    Raises ValueError outside 0 to 5.
    """
    if not 0 <= trainable_stages <= 5:
        raise ValueError(f"trainable_stages must lie between 0 and 5, got {trainable_stages}")
    parts = (("conv1", "bn1"), *((stage,) for stage in STAGES))
    for part in parts[: 5 - trainable_stages]:
        for name in part:
            detector.backbone.body[name].requires_grad_(False)


def _with_pyramid(body: ResNet, spec: DetectorSpec) -> BackboneWithFPN:
    returned = {stage: str(i) for i, stage in enumerate(STAGES)}
    return BackboneWithFPN(body, returned, spec.body.stage_widths, spec.fpn_channels)


def _common_arguments(spec: DetectorSpec) -> dict[str, Any]:
    """What the three detectors share: the resize, the RPN, the box head and its batch of regions."""
    settings = spec.settings
    pooled = spec.fpn_channels * 7 * 7
    return {
        "min_size": list(settings.min_size),
        "max_size": settings.max_size,
        "rpn_anchor_generator": AnchorGenerator(
            tuple((size,) for size in settings.anchor_sizes), ((0.5, 1.0, 2.0),) * len(settings.anchor_sizes)
        ),
        "rpn_batch_size_per_image": settings.rpn_rois,
        "rpn_pre_nms_top_n_train": settings.train_proposals,
        "rpn_post_nms_top_n_train": settings.train_proposals,
        "rpn_pre_nms_top_n_test": settings.test_proposals,
        "rpn_post_nms_top_n_test": settings.test_proposals,
        "box_batch_size_per_image": settings.box_rois,
        "box_score_thresh": settings.score_threshold,
        "box_detections_per_img": settings.detections,
        "box_head": TwoMLPHead(pooled, spec.box_channels),
        "box_predictor": FastRCNNPredictor(spec.box_channels, spec.num_classes),
    }


def _faster_rcnn(backbone: BackboneWithFPN, spec: DetectorSpec) -> FasterRCNN:
    return FasterRCNN(backbone, **_common_arguments(spec))


def _mask_rcnn(backbone: BackboneWithFPN, spec: DetectorSpec) -> MaskRCNN:
    return MaskRCNN(
        backbone,
        mask_head=MaskRCNNHeads(spec.fpn_channels, (spec.mask_channels,) * 4, dilation=1),
        mask_predictor=MaskRCNNPredictor(spec.mask_channels, spec.mask_channels, spec.num_classes),
        **_common_arguments(spec),
    )


def _keypoint_rcnn(backbone: BackboneWithFPN, spec: DetectorSpec) -> KeypointRCNN:
    return KeypointRCNN(
        backbone,
        keypoint_head=KeypointRCNNHeads(spec.fpn_channels, (spec.keypoint_channels,) * 8),
        keypoint_predictor=KeypointRCNNPredictor(spec.keypoint_channels, spec.num_keypoints),
        **_common_arguments(spec),
    )


def settings_of(detector: GeneralizedRCNN) -> DetectorSettings:
    """Read the settings back from a detector, ours or torchvision's."""
    rpn, heads = detector.rpn, detector.roi_heads
    return DetectorSettings(
        min_size=tuple(detector.transform.min_size),
        max_size=detector.transform.max_size,
        anchor_sizes=tuple(size for level in rpn.anchor_generator.sizes for size in level),
        rpn_rois=rpn.fg_bg_sampler.batch_size_per_image,
        train_proposals=rpn._post_nms_top_n["training"],
        test_proposals=rpn._post_nms_top_n["testing"],
        box_rois=heads.fg_bg_sampler.batch_size_per_image,
        score_threshold=heads.score_thresh,
        detections=heads.detections_per_img,
    )
