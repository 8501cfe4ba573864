"""Reads Detectron2's configuration files: the values that they, their base files or Detectron2's defaults say."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

Numbers = tuple[float, ...]
Names = tuple[str, ...]
Levels = tuple[Numbers, ...] | Numbers

RPN, RCNN, RETINA, ANCHORS = "MODEL.RPN", "MODEL.ROI_HEADS", "MODEL.RETINANET", "MODEL.ANCHOR_GENERATOR"
BOX, MASK, POINTS = HEADS = "MODEL.ROI_BOX_HEAD", "MODEL.ROI_MASK_HEAD", "MODEL.ROI_KEYPOINT_HEAD"
"""The names of the sections."""
DEFAULTS: dict[str, tuple[Any, Any]] = {
    "DATASETS.TRAIN": (Names, ()),
    "INPUT.FORMAT": (Literal["BGR", "RGB"], "BGR"),
    "INPUT.MIN_SIZE_TRAIN": (tuple[int, ...], (800,)),
    "INPUT.MIN_SIZE_TEST": (int, 800),
    "INPUT.MAX_SIZE_TEST": (int, 1333),
    "TEST.DETECTIONS_PER_IMAGE": (int, 100),
    "MODEL.META_ARCHITECTURE": (str, "GeneralizedRCNN"),
    "MODEL.PIXEL_MEAN": (Numbers, (103.53, 116.28, 123.675)),
    "MODEL.PIXEL_STD": (Numbers, (1.0, 1.0, 1.0)),
    "MODEL.BACKBONE.NAME": (str, "build_resnet_backbone"),
    "MODEL.FPN.IN_FEATURES": (Names, ()),
    "MODEL.FPN.FUSE_TYPE": (str, "sum"),
    "MODEL.RESNETS.STRIDE_IN_1X1": (bool, True),
    "MODEL.RESNETS.RES5_DILATION": (int, 1),
    "MODEL.PROPOSAL_GENERATOR.NAME": (str, "RPN"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": (float, 0.0),
    f"{ANCHORS}.NAME": (str, "DefaultAnchorGenerator"),
    f"{ANCHORS}.SIZES": (Levels, ((32, 64, 128, 256, 512),)),
    f"{ANCHORS}.ASPECT_RATIOS": (Levels, ((0.5, 1.0, 2.0),)),
    f"{ANCHORS}.OFFSET": (float, 0.0),
    f"{RPN}.HEAD_NAME": (str, "StandardRPNHead"),
    f"{RPN}.IN_FEATURES": (Names, ("res4",)),
    f"{RPN}.IOU_THRESHOLDS": (tuple[float, float], (0.3, 0.7)),
    f"{RPN}.BATCH_SIZE_PER_IMAGE": (int, 256),
    f"{RPN}.POSITIVE_FRACTION": (float, 0.5),
    f"{RPN}.BBOX_REG_WEIGHTS": (Numbers, (1.0, 1.0, 1.0, 1.0)),
    f"{RPN}.PRE_NMS_TOPK_TRAIN": (int, 12000),
    f"{RPN}.PRE_NMS_TOPK_TEST": (int, 6000),
    f"{RPN}.POST_NMS_TOPK_TRAIN": (int, 2000),
    f"{RPN}.POST_NMS_TOPK_TEST": (int, 1000),
    f"{RPN}.NMS_THRESH": (float, 0.7),
    f"{RCNN}.NAME": (str, "Res5ROIHeads"),
    f"{RCNN}.IN_FEATURES": (Names, ("res4",)),
    f"{RCNN}.IOU_THRESHOLDS": (tuple[float, ...], (0.5,)),
    f"{RCNN}.BATCH_SIZE_PER_IMAGE": (int, 512),
    f"{RCNN}.POSITIVE_FRACTION": (float, 0.25),
    f"{RCNN}.SCORE_THRESH_TEST": (float, 0.05),
    f"{RCNN}.NMS_THRESH_TEST": (float, 0.5),
    f"{BOX}.NAME": (str, ""),
    f"{BOX}.BBOX_REG_WEIGHTS": (Numbers, (10.0, 10.0, 5.0, 5.0)),
    f"{BOX}.USE_SIGMOID_CE": (bool, False),
    f"{MASK}.NAME": (str, "MaskRCNNConvUpsampleHead"),
    f"{POINTS}.NAME": (str, "KRCNNConvDeconvUpsampleHead"),
    **{f"{head}.POOLER_TYPE": (str, "ROIAlignV2") for head in HEADS},
    **{f"{head}.POOLER_RESOLUTION": (int, 14) for head in HEADS},
    **{f"{head}.POOLER_SAMPLING_RATIO": (int, 0) for head in HEADS},
    f"{RETINA}.IN_FEATURES": (Names, ("p3", "p4", "p5", "p6", "p7")),
    f"{RETINA}.IOU_THRESHOLDS": (tuple[float, float], (0.4, 0.5)),
    f"{RETINA}.SCORE_THRESH_TEST": (float, 0.05),
    f"{RETINA}.TOPK_CANDIDATES_TEST": (int, 1000),
    f"{RETINA}.NMS_THRESH_TEST": (float, 0.5),
    f"{RETINA}.BBOX_REG_WEIGHTS": (Numbers, (1.0, 1.0, 1.0, 1.0)),
    f"{RETINA}.BBOX_REG_LOSS_TYPE": (str, "smooth_l1"),
    f"{RETINA}.SMOOTH_L1_LOSS_BETA": (float, 0.1),
}
"""The keys that are read, with their types and Detectron2's defaults."""

_OCTAVES = tuple(tuple(first * 2 ** (third / 3) for third in range(3)) for first in (32, 64, 128, 256, 512))
_TEXT_OF_OCTAVES = "[[x,x*2**(1.0/3),x*2**(2.0/3)]forxin[32,64,128,256,512]]"
"""The zoo's RetinaNet's text for the octaves, without spaces: the only Python in a configuration that is read."""
_BASE_RCNN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.FPN.IN_FEATURES": ("res2", "res3", "res4", "res5"),
    f"{ANCHORS}.SIZES": ((32,), (64,), (128,), (256,), (512,)),
    f"{RPN}.IN_FEATURES": ("p2", "p3", "p4", "p5", "p6"),
    f"{RPN}.PRE_NMS_TOPK_TRAIN": 2000,
    f"{RPN}.PRE_NMS_TOPK_TEST": 1000,
    f"{RPN}.POST_NMS_TOPK_TRAIN": 1000,
    f"{RCNN}.NAME": "StandardROIHeads",
    f"{RCNN}.IN_FEATURES": ("p2", "p3", "p4", "p5"),
    f"{BOX}.NAME": "FastRCNNConvFCHead",
    f"{BOX}.POOLER_RESOLUTION": 7,
    "DATASETS.TRAIN": ("coco_2017_train",),
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
}
BASES: dict[str, dict[str, Any]] = {
    "Base-RCNN-FPN.yaml": _BASE_RCNN,
    "Base-Keypoint-RCNN-FPN.yaml": {
        **_BASE_RCNN,
        f"{RPN}.POST_NMS_TOPK_TRAIN": 1500,
        "DATASETS.TRAIN": ("keypoints_coco_2017_train",),
    },
    "Base-RetinaNet.yaml": {
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
        "MODEL.FPN.IN_FEATURES": ("res3", "res4", "res5"),
        f"{ANCHORS}.SIZES": _OCTAVES,
        f"{RETINA}.SMOOTH_L1_LOSS_BETA": 0.0,
        "DATASETS.TRAIN": ("coco_2017_train",),
        "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    },
}
"""The values of these keys in Detectron2's public base configurations, by the file's name."""
_MOST_BASES = 8


@dataclass(frozen=True)
class Detectron2Config:
    """Holds a configuration's values by key; `source` is named in errors."""

    source: str
    values: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        kind, default = DEFAULTS[key]
        value = self.values.get(key, default)
        if isinstance(value, str) and kind is not str and value[:1] in "([":
            value = _literal(value)  # as Detectron2 does with YAML's `(640, 800)`
        try:
            return TypeAdapter(kind).validate_python(value)
        except ValidationError:
            raise ValueError(f"{self.source}: {key}: {value!r} is no value for it") from None


def zoo_config(base: str) -> Detectron2Config:
    """Return the configuration that the model zoo's detectors made by one of BASES have."""
    return Detectron2Config(f"Detectron2's {base}", BASES[base])


def read_config(path: Path) -> Detectron2Config:
    """Read a YAML file of Detectron2's over its `_BASE_`: a file at the place that it names, or one of Detectron2's
    public ones.

    No code in it is run. Raises ValueError naming the file that cannot be read or is not there.
    """
    chain: list[Mapping[str, Any]] = []
    while len(chain) < _MOST_BASES:
        tree = _read_yaml(path)
        chain.insert(0, {key: value for key in DEFAULTS if (value := _look_up(tree, key, path)) is not None})
        base = tree.get("_BASE_")
        if base is None:
            break
        following = path.parent / str(base)
        if following.is_file():
            path = following
        elif following.name in BASES:
            chain.insert(0, BASES[following.name])
            break
        else:
            raise ValueError(f"{path}: its _BASE_ {str(base)!r} is not there: put that file in its place")
    else:
        raise ValueError(f"{path}: more than {_MOST_BASES} files, one the _BASE_ of another")
    return Detectron2Config(str(path), {key: value for values in chain for key, value in values.items()})


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except Exception as error:  # PyYAML's constructors raise many kinds
        raise ValueError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected Detectron2's keys and values, got a {type(tree).__name__}")
    return tree


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also takes tuples and one known expression of Detectron2's own files."""


def _known_expression(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    text = "".join(str(loader.construct_sequence(node)[0]).split()) if isinstance(node, yaml.SequenceNode) else ""
    if text != _TEXT_OF_OCTAVES:
        raise ValueError(f"Python in it is not run: {text[:80]!r}")
    return [list(level) for level in _OCTAVES]


def _sequence(loader: yaml.SafeLoader, node: Any) -> Any:
    return loader.construct_sequence(node)


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _sequence)
_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _known_expression)


def _look_up(tree: Any, key: str, path: Path) -> Any:
    for part in key.split("."):
        if not isinstance(tree, Mapping):
            raise ValueError(f"{path}: {key}: expected a section of keys, got {tree!r}")
        tree = tree.get(part)
        if tree is None:
            return None
    return tree


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
