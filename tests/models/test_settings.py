"""What tensors do not tell of a network comes back from its file: every argument of torchvision's constructors."""

import inspect

import pytest
import torch
from detectors import ALL_KINDS, frames, tiny_detector
from reference import perturb_batch_norms
from torchvision.models import ResNet
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import MultiScaleRoIAlign

import norton_det
from norton_det.models.settings import TABLE, read_settings, write_settings

POOLING = {"featmap_names": ["0", "2"], "sampling_ratio": 1, "canonical_scale": 160, "canonical_level": 3}
MOVED = {
    **{"min_size": [48, 72], "max_size": 90, "size_divisible": 64, "fixed_size": [96, 80], "_skip_resize": True},
    **{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
    **{f"rpn_{when}_nms_top_n_{mode}": count for count, (when, mode) in enumerate(
        [("pre", "train"), ("pre", "test"), ("post", "train"), ("post", "test")], start=31)},
    **{"rpn_nms_thresh": 0.61, "rpn_fg_iou_thresh": 0.62, "rpn_bg_iou_thresh": 0.23, "rpn_score_thresh": 0.01},
    **{"rpn_batch_size_per_image": 99, "rpn_positive_fraction": 0.31},
    **{"box_score_thresh": 0.012, "box_nms_thresh": 0.44, "box_detections_per_img": 33, "box_fg_iou_thresh": 0.56},
    **{"box_bg_iou_thresh": 0.43, "box_batch_size_per_image": 77, "box_positive_fraction": 0.21},
    **{"bbox_reg_weights": [9.0, 8.0, 4.0, 3.0], "rpn_min_size": 0.5, "images": "detectron2", "clips_late": True},
    **{"score_thresh": 0.013, "nms_thresh": 0.48, "detections_per_img": 34, "topk_candidates": 66},
    **{"fg_iou_thresh": 0.57, "bg_iou_thresh": 0.34, "center_sampling_radius": 2.5},
    **{"allow_low_quality_matches": False, "box_loss": "smooth_l1"},
    "rpn_anchor_generator": {"sizes": [[17.0], [31], [66], [120], [250]], "aspect_ratios": [[0.4, 1.1, 2.2]] * 5},
    "box_roi_pool": {**POOLING, "output_size": [7, 7]},
    "mask_roi_pool": {**POOLING, "output_size": [12, 10]},
    "keypoint_roi_pool": {**POOLING, "output_size": [10, 12]},
}  # fmt: skip
"""Of every setting another value than a detector has, as plain types."""
ONE_STAGE_ANCHORS = {
    "retinanet": [[16.0, 20, 25], [32, 41, 50], [65, 80, 102], [128, 161, 203], [256, 322, 406]],
    "fcos": [[9.0], [17], [33], [65], [129]],
}


def moved(kind):
    name = kind.removesuffix("_v2")
    ratios = [[1.5]] if name == "fcos" else [[0.6, 1.2, 1.9]]
    anchors = {"sizes": ONE_STAGE_ANCHORS.get(name), "aspect_ratios": ratios * 5}
    return {**MOVED, "anchor_generator": anchors}


def given(name, value):
    """A setting as torchvision's constructor takes it."""
    if name.endswith("anchor_generator"):
        return AnchorGenerator(*(tuple(map(tuple, value[key])) for key in ("sizes", "aspect_ratios")))
    return MultiScaleRoIAlign(**value) if name.endswith("roi_pool") else value


def body(**arguments):
    return ResNet(BasicBlock, [1, 1, 1, 1], **arguments)


def pyramid(resnet, expansion=1):
    stages = {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)}
    return BackboneWithFPN(resnet, stages, [64 * expansion * 2**i for i in range(4)], 32)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_setting_comes_back_from_a_file(kind, tmp_path):
    detector = tiny_detector(kind, "resnet18")
    before = read_settings(detector)
    wanted = {name: moved(kind)[name] for name in before}
    assert [name for name in before if before[name] == wanted[name]] == []
    write_settings(detector, wanted)
    assert read_settings(detector) == wanted
    norton_det.save(detector, tmp_path / "moved.pth")
    loaded = norton_det.load_detector(tmp_path / "moved.pth")
    assert read_settings(loaded) == wanted
    with torch.no_grad():
        for found, expected in zip(loaded(frames()), detector(frames()), strict=True):
            assert len(expected["boxes"]) > 0
            assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_every_setting_of_the_table_is_moved_in_some_kind():
    assert set().union(*(read_settings(tiny_detector(kind, "resnet18")) for kind in ALL_KINDS)) == set(TABLE)
    assert set(TABLE) <= set(moved("retinanet"))


DETECTORS = {
    FasterRCNN: "faster_rcnn",
    MaskRCNN: "mask_rcnn",
    KeypointRCNN: "keypoint_rcnn",
    RetinaNet: "retinanet",
    FCOS: "fcos",
}
OF_STRUCTURE = {
    *("backbone", "num_classes", "num_keypoints", "rpn_head", "head"),
    *(f"{kind}_{part}" for kind in ("box", "mask", "keypoint") for part in ("head", "predictor")),
}
"""Arguments that tensors and structure tell."""
OF_RESNETS = {
    *("block", "layers", "num_classes", "groups", "width_per_group", "norm_layer"),  # told by tensors
    "replace_stride_with_dilation",  # told as geometry
    "zero_init_residual",  # of random weights alone
}


NO_ARGUMENTS = {"box_loss", "images", "rpn_min_size"}
"""Settings that a constructor does not take."""


def parameters(owner):
    found = inspect.signature(owner.__init__).parameters.values()
    return {p.name for p in found if p.kind is not p.VAR_KEYWORD} - {"self"}


@pytest.mark.parametrize("owner", DETECTORS)
def test_settings_are_read_where_torchvisions_constructor_puts_them(owner):
    values = moved(DETECTORS[owner])
    told = (parameters(owner) | parameters(GeneralizedRCNNTransform) | {"_skip_resize"}) & set(TABLE)
    arguments = {name: given(name, values[name]) for name in told}
    if owner is RetinaNet:
        matcher = Matcher(values["fg_iou_thresh"], values["bg_iou_thresh"], values["allow_low_quality_matches"])
        arguments["proposal_matcher"] = matcher
    with torch.device("meta"):
        found = read_settings(owner(pyramid(body()), 3, **arguments))
    assert {name: value for name, value in found.items() if name not in NO_ARGUMENTS} == {
        name: values[name] for name in found if name not in NO_ARGUMENTS
    }
    assert set(found) >= told


@pytest.mark.parametrize("owner", DETECTORS)
def test_no_argument_of_torchvisions_is_unknown(owner):
    assert parameters(owner) - set(TABLE) - OF_STRUCTURE <= {"proposal_matcher"}
    assert parameters(GeneralizedRCNNTransform) <= set(TABLE)


def test_no_argument_of_torchvisions_parts_is_unknown():
    assert parameters(AnchorGenerator) == {"sizes", "aspect_ratios"}
    assert parameters(MultiScaleRoIAlign) == {*POOLING, "output_size"}
    assert parameters(ResNet) == OF_RESNETS


@pytest.mark.parametrize("dilated", [(False, True, True), (True, False, True)])
def test_dilated_bodies_come_back(dilated, tmp_path):
    torch.manual_seed(0)
    resnet = ResNet(Bottleneck, [1, 1, 1, 2], num_classes=4, replace_stride_with_dilation=dilated)
    plan = {"ranks": {"layer4.1.conv2": 2}, "rates": {"layer3": 0.3, "layer4.1.conv1": 0.5}}
    for model in (resnet, norton_det.compress(resnet, plan)[0]):
        perturb_batch_norms(model).eval()
        norton_det.save(model, tmp_path / "dilated.pth")
        loaded = norton_det.load_resnet(tmp_path / "dilated.pth")
        assert torch.equal(loaded(torch.stack(frames(1))), model(torch.stack(frames(1))))
    detector = FasterRCNN(pyramid(resnet, expansion=4), 3, min_size=64, max_size=96, box_score_thresh=0.0).eval()
    norton_det.save(detector, tmp_path / "dilated.pth")
    with torch.no_grad():
        found, expected = (d(frames(1))[0] for d in (norton_det.load_detector(tmp_path / "dilated.pth"), detector))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("min_size", "wide", "min_size: .*valid tuple"),
        ("min_size", [], "min_size: .*at least 1 item"),
        ("box_nms_thresh", 1.5, "box_nms_thresh: .*less than or equal to 1, got 1.5"),
        ("image_mean", [0.5, 0.5], "image_mean"),
        ("rpn_anchor_generator", {"sizes": [[8]], "aspect_ratios": [[1], [1]]}, "1 levels of sizes, 2 of aspect"),
        ("rpn_anchor_generator", {"sizes": [[8]], "aspect_ratios": [[1]], "shape": 1}, "shape"),
        ("box_roi_pool", {"featmap_names": ["0"], "output_size": [7], "sampling_ratio": 2}, r"box_roi_pool\.output"),
        ("score_thresh", 0.5, "score_thresh: no setting of a FasterRCNN, which has min_size"),
    ],
)
def test_values_that_a_setting_cannot_have_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        write_settings(tiny_detector("faster_rcnn", "resnet18"), {name: value})
