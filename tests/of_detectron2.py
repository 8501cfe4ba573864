"""Tiny detectors of Detectron2's: names and shapes of their tensors, weights by a rule, images by a formula."""

import pickle
import re
import zlib

import numpy as np
import torch
import yaml

STEM, RES2, WIDTH, PYRAMID, FC, MASK, POINT = 16, 32, 8, 32, 64, 16, 16
"""Of stem, stage 2 and its bottlenecks, pyramid, and heads: channels."""
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
CLASSES, KEYPOINTS = 5, 7
PUBLIC = {
    "faster_rcnn": "Base-RCNN-FPN.yaml",
    "mask_rcnn": "Base-RCNN-FPN.yaml",
    "keypoint_rcnn": "Base-Keypoint-RCNN-FPN.yaml",
    "retinanet": "Base-RetinaNet.yaml",
}


OTHERWISE = {
    **{"MODEL__ROI_BOX_HEAD__POOLER_TYPE": "ROIAlign", "MODEL__ROI_MASK_HEAD__POOLER_TYPE": "ROIAlign"},
    **{"MODEL__ROI_BOX_HEAD__POOLER_SAMPLING_RATIO": 2, "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.2},
    "MODEL__RPN__BBOX_REG_WEIGHTS": [2.0, 2.0, 1.5, 1.5],
    **{"MODEL__ANCHOR_GENERATOR__SIZES": [[20], [43], [85], [171], [300]], "MODEL__ANCHOR_GENERATOR__OFFSET": 0.5},
    **{"MODEL__ANCHOR_GENERATOR__ASPECT_RATIOS": [[2.0, 1.0, 0.3]], "INPUT__FORMAT": "RGB"},
    **{"MODEL__RPN__POST_NMS_TOPK_TEST": 50, "MODEL__RESNETS__STRIDE_IN_1X1": False},
}
RETINANET_OTHERWISE = {
    **{"MODEL__RETINANET__BBOX_REG_WEIGHTS": [2.0, 2.0, 1.5, 1.5], "MODEL__RETINANET__SCORE_THRESH_TEST": 0.1},
    **{"MODEL__RETINANET__TOPK_CANDIDATES_TEST": 77, "MODEL__ANCHOR_GENERATOR__ASPECT_RATIOS": [[2.0, 1.0, 0.3]]},
    "MODEL__RESNETS__STRIDE_IN_1X1": False,
}
GOLDEN = {
    "faster_rcnn R50": ({"family": "faster_rcnn"}, {}),
    "mask_rcnn R50": ({"family": "mask_rcnn"}, {}),
    "keypoint_rcnn R50": ({"family": "keypoint_rcnn"}, {}),
    "retinanet R50": ({"family": "retinanet"}, {}),
    "faster_rcnn R101": ({"family": "faster_rcnn", "depth": 101}, {}),
    "faster_rcnn R18, BN": ({"family": "faster_rcnn", "depth": 18, "norm": "BN"}, {}),
    "mask_rcnn R50, agnostic, other settings": ({"family": "mask_rcnn", "agnostic": True}, OTHERWISE),
    "retinanet R50, other settings": ({"family": "retinanet"}, RETINANET_OTHERWISE),
}
"""Detectors whose findings by Detectron2 are kept in models/golden/detectron2.json: arguments of `shapes`, and what
their configurations change beside FEW."""
FEW = {
    **{"TEST__DETECTIONS_PER_IMAGE": 25, "MODEL__ROI_HEADS__NMS_THRESH_TEST": 0.1},
    "MODEL__RETINANET__NMS_THRESH_TEST": 0.1,
}
"""Detections that hardly overlap, so that several classes are among the best."""


def shapes(family="faster_rcnn", depth=50, *, classes=CLASSES, keypoints=KEYPOINTS, agnostic=False, norm="FrozenBN"):
    """The shape of every tensor by Detectron2's name of it."""
    found = {}

    def conv(name, outputs, inputs, kernel, normed=False, kind="norm"):
        found[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        if not normed:
            found[f"{name}.bias"] = (outputs,)
            return
        found.update({f"{name}.norm.{t}": (outputs,) for t in ("weight", "bias", "running_mean", "running_var")})
        if norm == "BN":
            found[f"{name}.norm.num_batches_tracked"] = ()

    def linear(name, outputs, inputs):
        found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs), (outputs,)

    conv("backbone.bottom_up.stem.conv1", STEM, 3, 7, normed=True)
    inputs, outputs, width = STEM, RES2, WIDTH
    if depth == 18:
        inputs = outputs = 64
        found["backbone.bottom_up.stem.conv1.weight"] = (64, 3, 7, 7)
        found.update({k: (64,) for k in found if k.startswith("backbone.bottom_up.stem.conv1.norm") and found[k]})
    stages = {}
    for stage, count in enumerate(BLOCKS[depth], start=2):
        for block in range(count):
            name = f"backbone.bottom_up.res{stage}.{block}"
            if inputs != outputs:
                conv(f"{name}.shortcut", outputs, inputs, 1, normed=True)
            if depth == 18:
                conv(f"{name}.conv1", outputs, inputs, 3, normed=True)
                conv(f"{name}.conv2", outputs, outputs, 3, normed=True)
            else:
                conv(f"{name}.conv1", width, inputs, 1, normed=True)
                conv(f"{name}.conv2", width, width, 3, normed=True)
                conv(f"{name}.conv3", outputs, width, 1, normed=True)
            inputs = outputs
        stages[stage], outputs, width = outputs, 2 * outputs, 2 * width
    for level in range(3 if family == "retinanet" else 2, 6):
        conv(f"backbone.fpn_lateral{level}", PYRAMID, stages[level], 1)
        conv(f"backbone.fpn_output{level}", PYRAMID, PYRAMID, 3)
    if family == "retinanet":
        conv("backbone.top_block.p6", PYRAMID, stages[5], 3)
        conv("backbone.top_block.p7", PYRAMID, PYRAMID, 3)
        for layer in range(0, 8, 2):
            conv(f"head.cls_subnet.{layer}", PYRAMID, PYRAMID, 3)
            conv(f"head.bbox_subnet.{layer}", PYRAMID, PYRAMID, 3)
        conv("head.cls_score", 9 * classes, PYRAMID, 3)
        conv("head.bbox_pred", 36, PYRAMID, 3)
        return found
    conv("proposal_generator.rpn_head.conv", PYRAMID, PYRAMID, 3)
    conv("proposal_generator.rpn_head.objectness_logits", 3, PYRAMID, 1)
    conv("proposal_generator.rpn_head.anchor_deltas", 12, PYRAMID, 1)
    linear("roi_heads.box_head.fc1", FC, PYRAMID * 49)
    linear("roi_heads.box_head.fc2", FC, FC)
    classes = 1 if family == "keypoint_rcnn" else classes
    linear("roi_heads.box_predictor.cls_score", classes + 1, FC)
    linear("roi_heads.box_predictor.bbox_pred", 4 if agnostic else 4 * classes, FC)
    if family == "mask_rcnn":
        for layer in range(1, 5):
            conv(f"roi_heads.mask_head.mask_fcn{layer}", MASK, PYRAMID if layer == 1 else MASK, 3)
        conv("roi_heads.mask_head.deconv", MASK, MASK, 2)
        conv("roi_heads.mask_head.predictor", 1 if agnostic else classes, MASK, 1)
    if family == "keypoint_rcnn":
        for layer in range(1, 9):
            conv(f"roi_heads.keypoint_head.conv_fcn{layer}", POINT, PYRAMID if layer == 1 else POINT, 3)
        conv("roi_heads.keypoint_head.score_lowres", POINT, keypoints, 4)
        found["roi_heads.keypoint_head.score_lowres.bias"] = (keypoints,)
    return found


GAINS = {
    r"conv3\.norm\.weight|res\d\.\d+\.conv2\.norm\.weight": 0.3,
    r"objectness_logits\.weight": 2.0,
    r"anchor_deltas\.weight": 0.2,
    r"box_predictor\.cls_score\.weight": 2.0,
    r"box_predictor\.bbox_pred\.weight": 1.0,
    r"head\.cls_score\.weight": 0.5,
    r"head\.bbox_pred\.weight": 0.5,
    r"mask_head\.predictor\.weight": 2.0,
    r"score_lowres\.weight": 4.0,
}
"""By a pattern of names, how much larger than ordinary weights are drawn, so that scores spread."""


def drawn(name, shape):
    """A tensor's values, which its name and shape decide: NumPy's old generator gives the same ones everywhere."""
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    values = draw.standard_normal(shape)
    gain = next((gain for pattern, gain in GAINS.items() if re.search(rf"(^|\.)({pattern})$", name)), 1.0)
    if name.endswith("num_batches_tracked"):
        return np.array(7, dtype=np.int64)
    if name.endswith("running_var"):
        values = 1 + 0.3 * np.tanh(values)
    elif name.endswith("norm.weight"):
        values = gain * (1 + 0.2 * np.tanh(values))
    elif name.endswith(("bias", "running_mean")):
        values = 0.1 * values - (2.0 if name == "head.cls_score.bias" else 0.0)
    else:
        values = gain * values * np.sqrt(2 / np.prod(shape[1:]))
    if name == "backbone.bottom_up.stem.conv1.weight":
        values = values / 60  # of pixels up to 255
    return np.asarray(values, dtype=np.float32)


def arrays(*args, **kwargs):
    """The arrays of a tiny detector by Detectron2's names, arguments as of `shapes`."""
    return {name: drawn(name, shape) for name, shape in shapes(*args, **kwargs).items()}


def write_pkl(path, *args, **kwargs):
    """A detector as the model zoo writes it."""
    content = {"model": arrays(*args, **kwargs), "__author__": "nobody", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_pth(path, *args, **kwargs):
    """A detector as somebody's own training writes it."""
    model = {name: torch.tensor(values) for name, values in arrays(*args, **kwargs).items()}
    torch.save({"model": model, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 3}, "iteration": 3}, path)


def config(family="faster_rcnn", **changes):
    """A configuration for small images: nested keys and values, `changes` by dotted keys with __ for the dots."""
    tree = {"_BASE_": f"../{PUBLIC[family]}", "INPUT": {"MIN_SIZE_TEST": 128, "MAX_SIZE_TEST": 213}}
    changes = {"MODEL__PIXEL_STD": [57.375, 57.12, 58.395]} | changes
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return tree


def write_config(path, *args, **changes):
    path.write_text(yaml.safe_dump(config(*args, **changes)))
    return path


def picture(height, width):
    """An image of 8 bits (height, width, 3), RGB: waves and coloured blocks."""
    rows, columns = np.mgrid[:height, :width].astype(float)
    waves = [np.sin(rows / (5 + 3 * c) + c) + np.cos(columns / (7 - 2 * c)) for c in range(3)]
    blocks = [((rows // 23 * 7 + columns // 31 * (5 + c)) % 11) / 5 - 1 for c in range(3)]
    values = np.stack([128 + 30 * wave + 60 * block for wave, block in zip(waves, blocks, strict=True)], axis=-1)
    return values.clip(0, 255).astype(np.uint8)


def as_tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1) / 255
