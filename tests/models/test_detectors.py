import pytest
import torch
import torchvision
from norton_det.models.detectors import (
    DetectorSettings,
    DetectorSpec,
    build_from_spec,
    freeze_stages,
    replace_predictors,
    settings_of,
)
from norton_det.models.resnet import ResNetSpec

from norton_det.compression.plan import load_plan
from norton_det.models.norms import freeze_batch_norms, unfreeze_batch_norms

DENSE = ResNetSpec.dense()
NORTON_77 = load_plan("norton-77").apply(DENSE)
SMALL = load_plan("norton-59").apply(ResNetSpec.dense(0.125))


def small_spec(kind, **changes):
    settings = DetectorSettings(min_size=(64,), max_size=96, test_proposals=50, score_threshold=0.0)
    return DetectorSpec(
        kind,
        3,
        SMALL,
        fpn_channels=16,
        box_channels=32,
        mask_channels=16,
        keypoint_channels=16,
        settings=settings,
        **changes,
    )


@pytest.mark.parametrize(
    ("kind", "classes", "dense", "norton"),
    [
        ("faster_rcnn", 91, 41_808_406, 22_012_182),
        ("mask_rcnn", 91, 44_454_513, 24_658_289),
        ("keypoint_rcnn", 2, 59_190_378, 39_394_154),
    ],
)
def test_published_parameter_counts(kind, classes, dense, norton):
    for body, expected in ((DENSE, dense), (NORTON_77, norton)):
        with torch.device("meta"):
            detector = build_from_spec(DetectorSpec(kind, classes, body))
        assert sum(p.numel() for p in detector.parameters()) == expected


@pytest.mark.parametrize(
    ("kind", "builder", "classes"),
    [
        ("faster_rcnn", torchvision.models.detection.fasterrcnn_resnet50_fpn, 91),
        ("mask_rcnn", torchvision.models.detection.maskrcnn_resnet50_fpn, 91),
        ("keypoint_rcnn", torchvision.models.detection.keypointrcnn_resnet50_fpn, 2),
    ],
)
def test_dense_detector_is_torchvisions(kind, builder, classes):
    torch.manual_seed(0)
    theirs = builder(weights=None, weights_backbone=None, box_score_thresh=0.01, min_size=64, max_size=96).eval()
    settings = settings_of(theirs)
    ours = build_from_spec(DetectorSpec(kind, classes, DENSE, settings=settings)).eval()
    assert settings_of(ours) == settings
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(3, 64, 80)
    expected, found = theirs([image])[0], ours([image])[0]
    assert len(expected["boxes"]) > 0
    for key in expected:
        torch.testing.assert_close(found[key], expected[key])


def shapes(detector):
    return {name: value.shape for name, value in detector.state_dict().items()}


def test_as_many_proposals_enter_nms_as_may_leave_it():
    settings = DetectorSettings(train_proposals=300, test_proposals=70)
    with torch.device("meta"):
        rpn = build_from_spec(DetectorSpec("faster_rcnn", 3, SMALL, settings=settings)).rpn
    assert rpn._pre_nms_top_n == rpn._post_nms_top_n == {"training": 300, "testing": 70}


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "keypoint_rcnn"])
def test_structure_is_read_back_from_tensors(kind):
    spec = small_spec(kind, num_keypoints=5)
    detector = build_from_spec(spec)
    state = detector.state_dict()
    read = DetectorSpec.from_state_dict(state, spec.settings)
    assert shapes(build_from_spec(read)) == shapes(detector)
    assert (read.kind, read.num_classes, read.body, read.fpn_channels) == (kind, 3, SMALL, 16)


def test_the_structure_before_compression_is_dense_in_every_part():
    spec = small_spec("faster_rcnn", part_ranks={"neck": 1, "box_head": 8})
    dense = spec.uncompressed(0.125)
    assert (dense.body, dense.part_ranks) == (ResNetSpec.dense(0.125), {})
    assert (dense.kind, dense.fpn_channels, dense.settings) == (spec.kind, spec.fpn_channels, spec.settings)


def test_a_linear_layer_has_no_higher_rank_than_its_sides():
    detector = build_from_spec(small_spec("faster_rcnn", part_ranks={"box_head": 99}))
    assert detector.roi_heads.box_head.fc7.rank == 32


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'yolo' is not one of"):
        build_from_spec(small_spec("yolo"))


def test_replaced_predictors_have_the_new_classes():
    detector = build_from_spec(small_spec("mask_rcnn")).eval()
    before = detector.backbone.body["conv1"].weight.clone()
    replace_predictors(detector, 7)
    assert detector.roi_heads.box_predictor.cls_score.out_features == 7
    assert detector.roi_heads.mask_predictor.mask_fcn_logits.out_channels == 7
    assert torch.equal(detector.backbone.body["conv1"].weight, before)
    assert detector([torch.rand(3, 64, 64)])[0]["labels"].max() < 7


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [(5, []), (3, ["bn1", "conv1", "layer1"]), (0, ["bn1", "conv1", "layer1", "layer2", "layer3", "layer4"])],
)
def test_frozen_stages(stages, frozen):
    detector = build_from_spec(small_spec("faster_rcnn"))
    freeze_stages(detector, stages)
    found = {name.split(".")[0] for name, p in detector.backbone.body.named_parameters() if not p.requires_grad}
    assert sorted(found) == frozen


def test_freezing_and_unfreezing_keep_the_function():
    torch.manual_seed(0)
    detector = build_from_spec(small_spec("faster_rcnn"), eps=1e-3).double().eval()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    expected = detector.backbone(x)["0"]
    freeze_batch_norms(detector)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in detector.modules())
    torch.testing.assert_close(detector.backbone(x)["0"], expected)
    unfreeze_batch_norms(detector)
    assert detector.backbone.body["bn1"].eps == 1e-3
    torch.testing.assert_close(detector.backbone(x)["0"], expected)


def test_batch_norm_of_eps_0_becomes_trainable_and_stays_the_same_function():
    torch.manual_seed(0)
    detector, image = build_from_spec(small_spec("faster_rcnn"), eps=0.0).eval(), torch.rand(2, 3, 64, 64)
    freeze_batch_norms(detector)
    before = detector.backbone(image)
    unfreeze_batch_norms(detector)
    after = detector.backbone(image)
    assert detector.backbone.body["bn1"].eps == 1e-12
    for level in before:
        torch.testing.assert_close(after[level], before[level])
    detector.train().backbone(image)
