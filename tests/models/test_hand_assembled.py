"""Detectors that torchvision's users assemble themselves come back from their files, or are refused in one line."""

import copy

import pytest
import torch
from detectors import FEW, frames, tiny_classifier, tiny_detector
from reference import perturb_batch_norms
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

import norton_det
from norton_det.models.channels import read_body
from norton_det.models.parts import PARTS
from norton_det.models.settings import read_settings, write_settings

LITTLE = {"min_size": 64, "max_size": 96}
CHANNELS = 32
RATIOS = (0.5, 1.0, 2.0)


def backbone(stages=(1, 2, 3, 4), extra=None, norm=nn.BatchNorm2d):
    """A pyramid on a ResNet-10 of half the ordinary width."""
    resnet = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=norm)
    returned = {f"layer{stage}": str(level) for level, stage in enumerate(stages)}
    return BackboneWithFPN(resnet, returned, [64 * 2 ** (stage - 1) for stage in stages], CHANNELS, extra)


def anchors(*sizes, ratios=RATIOS):
    return AnchorGenerator(tuple((size,) for size in sizes), (ratios,) * len(sizes))


def pooling(levels, size, ratio=2):
    return MultiScaleRoIAlign([str(level) for level in range(levels)], size, ratio)


def without_extra_levels():
    bare = backbone()
    bare.fpn.extra_blocks = None
    return FasterRCNN(bare, 3, rpn_anchor_generator=anchors(16, 32, 64, 128), **LITTLE)


def with_small_pooling():
    head, predictor = TwoMLPHead(CHANNELS * 5 * 5, 24), FastRCNNPredictor(24, 3)
    return FasterRCNN(
        backbone(), box_roi_pool=pooling(4, 5, ratio=3), box_head=head, box_predictor=predictor, **LITTLE
    )


def with_a_convolutional_head():
    head = FastRCNNConvFCHead((CHANNELS, 7, 7), [CHANNELS] * 2, [20], norm_layer=nn.BatchNorm2d)
    rpn = RPNHead(CHANNELS, 3, conv_depth=3)
    return FasterRCNN(backbone(), box_head=head, box_predictor=FastRCNNPredictor(20, 3), rpn_head=rpn, **LITTLE)


def box_parts():
    return {"box_head": TwoMLPHead(CHANNELS * 49, 24), "box_predictor": FastRCNNPredictor(24, 3)}


def with_two_mask_convolutions():
    head, predictor = MaskRCNNHeads(CHANNELS, [8, 8], dilation=2), MaskRCNNPredictor(8, 12, 3)
    parts = {"mask_roi_pool": pooling(4, 10), "mask_head": head, "mask_predictor": predictor}
    return MaskRCNN(backbone(), **parts, **box_parts(), **LITTLE)


def with_mask_convolutions_of_different_widths():
    head, predictor = MaskRCNNHeads(CHANNELS, [8, 12, 10], dilation=1), MaskRCNNPredictor(10, 6, 3)
    return MaskRCNN(backbone(), mask_head=head, mask_predictor=predictor, **box_parts(), **LITTLE)


def with_four_keypoints(convolutions=2):
    head, predictor = KeypointRCNNHeads(CHANNELS, [8] * convolutions), KeypointRCNNPredictor(8, 4)
    parts = {"keypoint_head": head, "keypoint_predictor": predictor}
    return KeypointRCNN(backbone(), **parts, **box_parts(), **LITTLE)


def with_masks_and_keypoints():
    detector = with_two_mask_convolutions()
    theirs = with_four_keypoints().roi_heads
    for part in ("roi_pool", "head", "predictor"):
        setattr(detector.roi_heads, f"keypoint_{part}", getattr(theirs, f"keypoint_{part}"))
    return detector


def retinanet(stages, extra, sizes, ratios=RATIOS):
    generator = AnchorGenerator(sizes, (ratios,) * len(sizes))
    return RetinaNet(backbone(stages, extra), 3, anchor_generator=generator, **LITTLE)


SIZES = tuple((2.0**level,) for level in range(4, 9))
P6P7_OF_C5, P6P7_OF_P5 = (lambda: LastLevelP6P7(512, CHANNELS)), (lambda: LastLevelP6P7(CHANNELS, CHANNELS))
ASSEMBLED = {
    "stages 1 to 3": lambda: FasterRCNN(
        backbone((1, 2, 3)), 3, rpn_anchor_generator=anchors(16, 32, 64, 128), box_roi_pool=pooling(3, 7), **LITTLE
    ),
    "stages 2 to 4": lambda: FasterRCNN(
        backbone((2, 3, 4)), 3, rpn_anchor_generator=anchors(16, 32, 64, 128), box_roi_pool=pooling(3, 7), **LITTLE
    ),
    "stages 1, 3 and 4": lambda: FasterRCNN(
        backbone((1, 3, 4)), 3, rpn_anchor_generator=anchors(16, 32, 64, 128), box_roi_pool=pooling(3, 7), **LITTLE
    ),
    "no extra levels": without_extra_levels,
    "p6 and p7 of an R-CNN": lambda: FasterRCNN(
        backbone(extra=P6P7_OF_P5()), 3, rpn_anchor_generator=anchors(8, 16, 32, 64, 128, 256), **LITTLE
    ),
    "own anchors": lambda: FasterRCNN(
        backbone(), 3, rpn_anchor_generator=anchors(8, 20, 50, 90, 200, ratios=(0.3, 1.0, 1.7, 4.0)), **LITTLE
    ),
    "several sizes a level": lambda: FasterRCNN(
        backbone(), 3, rpn_anchor_generator=AnchorGenerator(((8, 12), (16, 24), (32, 48), (64, 96), (128, 192)),
                                                            ((1.0, 2.0),) * 5), **LITTLE,
    ),
    "pooling of 5 x 5": with_small_pooling,
    "a convolutional head": with_a_convolutional_head,
    "two mask convolutions": with_two_mask_convolutions,
    "mask convolutions of different widths": with_mask_convolutions_of_different_widths,
    "four keypoints": with_four_keypoints,
    "frozen batch norm": lambda: FasterRCNN(backbone(norm=FrozenBatchNorm2d), 3, **LITTLE),
    "retinanet of one anchor": lambda: retinanet((2, 3, 4), P6P7_OF_P5(), SIZES, (1.0,)),
    "retinanet on c5": lambda: retinanet((2, 3, 4), P6P7_OF_C5(), SIZES),
    "retinanet with a pooled level": lambda: retinanet((2, 3, 4), LastLevelMaxPool(), SIZES[:4]),
    "retinanet of smooth l1": lambda: with_loss(retinanet((1, 2), P6P7_OF_P5(), SIZES[:4])),
    "fcos on all stages": lambda: FCOS(
        backbone((1, 2, 3, 4), P6P7_OF_P5()), 3, anchor_generator=anchors(4, 8, 16, 32, 64, 99, ratios=(1,)), **LITTLE
    ),
}  # fmt: skip


def with_loss(detector):
    detector.head.regression_head._loss_type = "smooth_l1"
    return detector


def finished(build):
    """Looks trained, has few proposals, and finds something."""
    torch.manual_seed(0)
    detector = perturb_batch_norms(build()).eval()
    own = read_settings(detector)
    write_settings(detector, {name: value for name, value in FEW.items() if name in own})
    for name, parameter in detector.named_parameters():
        if name.startswith(("rpn.head", "head.")) and parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
    return detector


@torch.no_grad()
def assert_comes_back(detector, path):
    norton_det.save(detector, path)
    loaded = norton_det.load_detector(path)
    for found, expected in zip(loaded(frames()), detector.eval()(frames()), strict=True):
        assert len(expected["boxes"]) > 0 and found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    own = {"clips_late": False} if isinstance(detector, RetinaNet) else {}  # torchvision's knows no other way
    assert read_settings(loaded) == read_settings(detector) | own


def plan_of(detector):
    """Two layers decomposed, all channels pruned, and every part."""
    body = read_body(detector)
    parts = {"box_head": 8, "mask_head": 1, "keypoint_head": 1, "regression_head": 2}
    rates = {name: 0.1 + 0.6 * (index % 3) / 2 for index, name in enumerate(body.groups)}
    return {"ranks": dict.fromkeys(body.spatial[:4:2], 2), "rates": rates, "parts": dict.fromkeys(PARTS, 1) | parts}


@pytest.mark.parametrize("name", ASSEMBLED)
def test_it_comes_back_from_its_file_dense_and_compressed(name, tmp_path):
    detector = finished(ASSEMBLED[name])
    assert_comes_back(detector, tmp_path / "dense.pth")
    compressed, _ = norton_det.compress(detector, plan_of(detector))
    assert_comes_back(compressed, tmp_path / "compressed.pth")


@pytest.mark.parametrize("stages", [[1, 2, 3], [2, 3, 4], [1, 3, 4]])
def test_torchvisions_own_builder_of_a_pyramid(stages, tmp_path):
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, returned_layers=stages, trainable_layers=5)
    body.out_channels = 256
    sizes = {"rpn_anchor_generator": anchors(16, 32, 64, 128), "box_roi_pool": pooling(3, 7)}
    predictors = {"box_head": TwoMLPHead(256 * 49, 16), "box_predictor": FastRCNNPredictor(16, 3)}
    assert_comes_back(finished(lambda: FasterRCNN(body, **sizes, **predictors, **LITTLE)), tmp_path / "dense.pth")


@pytest.mark.parametrize(
    "change",
    [lambda d: d.train(), lambda d: d.requires_grad_(False), nn.SyncBatchNorm.convert_sync_batchnorm],
    ids=["training", "no gradients", "synchronised"],
)
def test_what_changes_no_function_is_no_obstacle(change, tmp_path):
    detector = tiny_detector("mask_rcnn_v2", "resnet18")
    expected = detector(frames(1))[0]["boxes"]
    changed = change(copy.deepcopy(detector))
    norton_det.save(changed, tmp_path / "changed.pth")
    assert torch.equal(norton_det.load_detector(tmp_path / "changed.pth")(frames(1))[0]["boxes"], expected)
    compressed, _ = norton_det.compress(changed, {"rates": {"layer1": 0.5, "layer2.0.conv1": 0.25}})
    same, _ = norton_det.compress(detector, {"rates": {"layer1": 0.5, "layer2.0.conv1": 0.25}})
    state = compressed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in same.state_dict().items())


class OwnHeads(RoIHeads):
    pass


class OwnAnchors(AnchorGenerator):
    pass


class OwnBody(ResNet):
    pass


def replaced(path, module):
    def change(detector):
        detector.set_submodule(path, module)
        return detector

    return change


def of_class(path, kind):
    def change(detector):
        detector.get_submodule(path).__class__ = kind
        return detector

    return change


def without_a_stage(model):
    del model.backbone.body["layer4"]
    return model


def with_prefilled_eps(model):
    model.backbone.body["layer2"][0].bn1.eps = 1e-3
    return model


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (replaced("backbone.body.layer2.0.relu", nn.SiLU()), r"backbone\.body\.layer2\.0\.relu is SiLU"),
        (replaced("backbone.body.maxpool", nn.MaxPool2d(2)), r"backbone\.body\.maxpool is MaxPool2d"),
        (replaced("backbone.body.maxpool", nn.AvgPool2d(3, 2, 1)), r"backbone\.body\.maxpool is AvgPool2d"),
        (with_prefilled_eps, r"backbone\.body\.layer2\.0\.bn1 is BatchNorm\(.*eps=0\.001"),
        (replaced("backbone.body.layer3.0.bn1", nn.GroupNorm(4, 32)), r"backbone\.body\.layer3\.0\.bn1"),
        (replaced("backbone.body.layer3.0.bn1", nn.InstanceNorm2d(32)), r"backbone\.body\.layer3\.0\.bn1"),
        (replaced("backbone.body.layer3.0.relu", nn.Sequential(nn.ReLU(), nn.Dropout())), r"layer3\.0\.relu"),
        (of_class("roi_heads", OwnHeads), "roi_heads is OwnHeads"),
        (of_class("rpn.anchor_generator", OwnAnchors), r"rpn\.anchor_generator is OwnAnchors"),
        (replaced("backbone.fpn.extra_blocks", nn.Identity()), "Identity"),
        (replaced("roi_heads.box_head", nn.Sequential(nn.Flatten(), nn.Linear(64 * 49, 32))), r"box_head"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_in_one_line(change, named, tmp_path):
    detector = change(tiny_detector("faster_rcnn", "resnet18"))
    for refused in (
        lambda: norton_det.save(detector, tmp_path / "refused.pth"),
        lambda: norton_det.compress(detector, {"ranks": {"layer1.0.conv1": 1}}),
    ):
        with pytest.raises(ValueError, match=named) as error:
            refused()
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        replaced("relu", nn.GELU()),
        replaced("layer1.0.relu", nn.LeakyReLU(0.1)),
        replaced("avgpool", nn.AdaptiveMaxPool2d(1)),
        replaced("fc", nn.Sequential(nn.Dropout(), nn.Linear(64, 10))),
        of_class("", OwnBody),
    ],
    ids=["gelu", "leaky", "maximum", "head", "subclass"],
)
def test_so_is_a_changed_classifier(change, tmp_path):
    model = change(tiny_classifier("resnet18"))
    with pytest.raises(ValueError, match=r"a file cannot hold|not supported"):
        norton_det.save(model, tmp_path / "refused.pth")


@pytest.mark.parametrize(
    ("returned", "message"),
    [({"layer1": "0", "layer2": "fine"}, "named 0, fine"), ({"layer2": "0", "layer1": "1"}, "ascending")],
)
def test_levels_of_other_names_or_order_are_refused(returned, message, tmp_path):
    widths = [64 * 2 ** (int(stage[-1]) - 1) for stage in returned]
    pyramid = BackboneWithFPN(ResNet(BasicBlock, [1, 1, 1, 1]), returned, widths, CHANNELS)
    detector = FasterRCNN(pyramid, 3, rpn_anchor_generator=anchors(16, 32, 64), **LITTLE)
    with pytest.raises(ValueError, match=message):
        norton_det.save(detector, tmp_path / "refused.pth")


def test_masks_and_keypoints_in_one_detector_are_refused(tmp_path):
    with pytest.raises(ValueError, match="both masks and keypoints"):
        norton_det.save(with_masks_and_keypoints(), tmp_path / "refused.pth")


def test_group_norm_in_the_body_is_refused(tmp_path):
    detector = FasterRCNN(backbone(norm=lambda width: nn.GroupNorm(8, width)), 3, **LITTLE)
    with pytest.raises(ValueError, match="GroupNorm") as error:
        norton_det.save(detector, tmp_path / "refused.pth")
    assert "\n" not in str(error.value)


def test_group_norm_in_the_pyramid_is_refused(tmp_path):
    resnet = ResNet(BasicBlock, [1, 1, 1, 1])
    stages = {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)}
    norm = lambda width: nn.GroupNorm(4, width)  # noqa: E731
    pyramid = BackboneWithFPN(resnet, stages, [64, 128, 256, 512], CHANNELS, norm_layer=norm)
    with pytest.raises(ValueError, match="GroupNorm") as error:
        norton_det.save(FasterRCNN(pyramid, 3, **LITTLE), tmp_path / "refused.pth")
    assert "\n" not in str(error.value)
