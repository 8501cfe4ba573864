"""Turns Detectron2's configurations into the settings of torchvision's detectors (`models/settings.py`)."""

from typing import Any, Literal

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from norton_det.models.detectron2_config import (
    ANCHORS,
    BOX,
    HEADS,
    MASK,
    POINTS,
    RCNN,
    RETINA,
    RPN,
    Detectron2Config,
    Names,
)

Family = Literal["faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet"]
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "MODEL.BACKBONE.NAME": ("build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone"),
    "MODEL.FPN.FUSE_TYPE": ("sum",),
    "MODEL.RESNETS.RES5_DILATION": (1,),
    f"{ANCHORS}.NAME": ("DefaultAnchorGenerator",),
}
_SUPPORTED_RCNN: dict[str, tuple[Any, ...]] = {
    **_SUPPORTED,
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    f"{RPN}.HEAD_NAME": ("StandardRPNHead",),
    f"{RCNN}.NAME": ("StandardROIHeads",),
    f"{BOX}.NAME": ("FastRCNNConvFCHead",),
    f"{BOX}.USE_SIGMOID_CE": (False,),
    f"{MASK}.NAME": ("MaskRCNNConvUpsampleHead",),
    f"{POINTS}.NAME": ("KRCNNConvDeconvUpsampleHead",),
    **{f"{head}.POOLER_TYPE": ("ROIAlign", "ROIAlignV2") for head in HEADS},
}
"""The supported values of the keys that change what is computed."""
_LEAST_SIDE = 1e-30
"""The least side of a proposal; it is above 0 so that proposals without an area are left out."""
COCO = {
    name: id
    for id, name in enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if id and name != "N/A"
}
"""COCO's 80 categories: ids by name, in their order."""


def first_level(config: Detectron2Config) -> int:
    """Return the number of the pyramid's finest level, 2 for p2."""
    return _number(config["MODEL.FPN.IN_FEATURES"][0])


def check_supported(config: Detectron2Config, family: Family) -> None:
    """Raise ValueError naming the first value that is not supported for this family of detectors."""
    retinanet = {**_SUPPORTED, "MODEL.META_ARCHITECTURE": ("RetinaNet",)}
    for key, supported in (retinanet if family == "retinanet" else _SUPPORTED_RCNN).items():
        if config[key] not in supported:
            expected = " or ".join(map(str, supported))
            raise ValueError(f"{config.source}: {key}: {config[key]} is not supported, expected {expected}")
    if not config["MODEL.FPN.IN_FEATURES"]:
        raise ValueError(f"{config.source}: MODEL.FPN.IN_FEATURES is empty: no feature pyramid")
    if config["INPUT.MIN_SIZE_TEST"] < 1:
        raise ValueError(f"{config.source}: INPUT.MIN_SIZE_TEST: {config['INPUT.MIN_SIZE_TEST']}, expected pixels")


def anchor_counts(config: Detectron2Config) -> tuple[int, int]:
    """Return how many sizes and how many aspect ratios of anchors each level has."""
    sizes, ratios = (_by_level(config, name, 1)[0] for name in ("SIZES", "ASPECT_RATIOS"))
    return len(sizes), len(ratios)


def settings_of(config: Detectron2Config, family: Family) -> dict[str, Any]:
    """Return what our files tell beside the tensors, without the geometry of convolutions."""
    flip = slice(None, None, -1 if config["INPUT.FORMAT"] == "BGR" else 1)
    sizes = [size for size in config["INPUT.MIN_SIZE_TRAIN"] if size != config["INPUT.MIN_SIZE_TEST"]]
    of_all = {
        "returned_layers": [_number(name) - 1 for name in config["MODEL.FPN.IN_FEATURES"]],
        "images": "detectron2",
        "min_size": [*sizes, config["INPUT.MIN_SIZE_TEST"]],
        "max_size": config["INPUT.MAX_SIZE_TEST"],
        "image_mean": [value / 255 for value in config["MODEL.PIXEL_MEAN"][flip]],
        "image_std": [value / 255 for value in config["MODEL.PIXEL_STD"][flip]],
    }
    return of_all | (_retinanet(config) if family == "retinanet" else _rcnn(config, family))


def categories_of(config: Detectron2Config, family: Family, classes: int) -> dict[str, Any]:
    """Return COCO's names and ids if the detector was trained on COCO and has its classes; else nothing."""
    of_coco = any("coco_20" in name for name in config["DATASETS.TRAIN"])
    expected = ["person"] if family == "keypoint_rcnn" else list(COCO)
    if not of_coco or classes != len(expected) + 1:
        return {}
    return {"categories": ["__background__", *expected], "category_ids": [0, *map(COCO.__getitem__, expected)]}


def _retinanet(config: Detectron2Config) -> dict[str, Any]:
    background, foreground = config[f"{RETINA}.IOU_THRESHOLDS"]
    loss, beta = config[f"{RETINA}.BBOX_REG_LOSS_TYPE"], config[f"{RETINA}.SMOOTH_L1_LOSS_BETA"]
    return {
        "extra_levels": "c5p6p7",
        "anchor_generator": _anchors(config, config[f"{RETINA}.IN_FEATURES"]),
        "score_thresh": config[f"{RETINA}.SCORE_THRESH_TEST"],
        "nms_thresh": config[f"{RETINA}.NMS_THRESH_TEST"],
        "topk_candidates": config[f"{RETINA}.TOPK_CANDIDATES_TEST"],
        "detections_per_img": config["TEST.DETECTIONS_PER_IMAGE"],
        "fg_iou_thresh": foreground,
        "bg_iou_thresh": background,
        "box_loss": "l1" if (loss, beta) == ("smooth_l1", 0) else loss,
        "clips_late": True,
    }


def _rcnn(config: Detectron2Config, family: Family) -> dict[str, Any]:
    background, foreground = config[f"{RPN}.IOU_THRESHOLDS"]
    heads = {"box": BOX}
    heads |= {"mask": MASK} if family == "mask_rcnn" else {}
    heads |= {"keypoint": POINTS} if family == "keypoint_rcnn" else {}
    return {
        "extra_levels": "pool",
        "rpn_min_size": max(config["MODEL.PROPOSAL_GENERATOR.MIN_SIZE"], _LEAST_SIDE),
        "rpn_anchor_generator": _anchors(config, config[f"{RPN}.IN_FEATURES"]),
        **{
            f"rpn_{when.lower()}_nms_top_n_{mode.lower()}": config[f"{RPN}.{when}_NMS_TOPK_{mode}"]
            for when in ("PRE", "POST")
            for mode in ("TRAIN", "TEST")
        },
        "rpn_nms_thresh": config[f"{RPN}.NMS_THRESH"],
        "rpn_fg_iou_thresh": foreground,
        "rpn_bg_iou_thresh": background,
        "rpn_batch_size_per_image": config[f"{RPN}.BATCH_SIZE_PER_IMAGE"],
        "rpn_positive_fraction": config[f"{RPN}.POSITIVE_FRACTION"],
        "box_score_thresh": config[f"{RCNN}.SCORE_THRESH_TEST"],
        "box_nms_thresh": config[f"{RCNN}.NMS_THRESH_TEST"],
        "box_detections_per_img": config["TEST.DETECTIONS_PER_IMAGE"],
        "box_fg_iou_thresh": config[f"{RCNN}.IOU_THRESHOLDS"][-1],
        "box_bg_iou_thresh": config[f"{RCNN}.IOU_THRESHOLDS"][0],
        "box_batch_size_per_image": config[f"{RCNN}.BATCH_SIZE_PER_IMAGE"],
        "box_positive_fraction": config[f"{RCNN}.POSITIVE_FRACTION"],
        "bbox_reg_weights": config[f"{BOX}.BBOX_REG_WEIGHTS"],
        **{f"{kind}_roi_pool": _pooling(config, head) for kind, head in heads.items()},
    }


def _pooling(config: Detectron2Config, head: str) -> dict[str, Any]:
    return {
        "featmap_names": [str(_number(name) - first_level(config)) for name in config[f"{RCNN}.IN_FEATURES"]],
        "output_size": [config[f"{head}.POOLER_RESOLUTION"]] * 2,
        "sampling_ratio": config[f"{head}.POOLER_SAMPLING_RATIO"],
        "aligned": config[f"{head}.POOLER_TYPE"] == "ROIAlignV2",
    }


def _anchors(config: Detectron2Config, levels: Names) -> dict[str, Any]:
    return {
        "sizes": _by_level(config, "SIZES", len(levels)),
        "aspect_ratios": _by_level(config, "ASPECT_RATIOS", len(levels)),
        "strides": [2 ** _number(level) for level in levels],
        "offset": config[f"{ANCHORS}.OFFSET"],
    }


def _by_level(config: Detectron2Config, name: str, levels: int) -> list[list[float]]:
    """Return one list for each level, from one for each or one for all."""
    told = config[f"{ANCHORS}.{name}"]
    lists = [list(of_level) for of_level in told] if isinstance(told[0], tuple) else [list(told)]
    return lists * levels if len(lists) == 1 else lists


def _number(level: str) -> int:
    """Return the number of a level or a stage such as p2 or res2. Raises ValueError for another name."""
    digits = level.removeprefix("res").removeprefix("p")
    if not digits.isdigit():
        raise ValueError(f"a level called {level!r}, expected one such as p2 or res2")
    return int(digits)
