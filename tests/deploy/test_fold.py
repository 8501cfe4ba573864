"""Folding against the network that is not folded."""

import copy

import pytest
import torch
from clear import clear_detector, pictures
from detectors import ALL_KINDS
from torch import nn
from torchvision.ops.misc import Conv2dNormActivation

from norton_det.analysis.complexity import count, total
from norton_det.deploy import fold
from norton_det.deploy.fold import FoldedPyramid, fold_batch_norms, fold_pyramid
from norton_det.deploy.forms import choose_forms
from norton_det.layers.cp_conv import CPConv2d, DepthwiseCPConv2d
from norton_det.models.norms import freeze_batch_norms
from norton_det.models.parts import networks, regions


@torch.no_grad()
def outputs(detector):
    """What the networks of a detector give, each from what the one before it gives."""
    levels = detector.backbone(torch.rand(1, 3, 97, 131, generator=torch.Generator().manual_seed(0)))
    found = [*levels.values()]
    dense = networks(detector)[1](list(levels.values()))
    for value in dense.values() if isinstance(dense, dict) else dense:
        found += value if isinstance(value, list) else [value]
    for pooler, head, predictor in regions(detector).values():
        pooled = torch.rand(2, 64, *pooler.output_size, generator=torch.Generator().manual_seed(1))
        read = predictor(head(pooled))
        found += read if isinstance(read, tuple) else [read]
    return found


def batch_norms(model):
    return [name for name, module in model.named_modules() if "BatchNorm" in type(module).__name__]


@pytest.mark.parametrize("plan", [None, "norton-77-all"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_folding_leaves_no_batch_norm_and_the_same_outputs(kind, plan):
    detector = clear_detector(kind, plan, "resnet50" if plan else "resnet18")
    if plan is None:
        freeze_batch_norms(detector)
    folded = copy.deepcopy(detector)
    fold_batch_norms(folded)
    assert batch_norms(detector) and not batch_norms(folded)
    norms = [sum(isinstance(m, nn.GroupNorm) for m in model.modules()) for model in (detector, folded)]
    assert norms[0] == norms[1] and (norms[0] > 0) == (kind in ("retinanet_v2", "fcos"))
    for ours, theirs in zip(outputs(folded), outputs(detector), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_bias_before_a_norm_is_folded_too():
    detector = clear_detector("faster_rcnn_v2", body="resnet18")
    block = detector.roi_heads.box_head[0]
    block[0].bias = nn.Parameter(torch.randn(block[0].out_channels))
    detector.backbone.body.layer1[0].conv1.bias = nn.Parameter(torch.randn(8))
    expected = outputs(detector)
    fold_batch_norms(detector)
    assert not batch_norms(detector)
    for ours, theirs in zip(outputs(detector), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_variance_that_is_small_beside_eps_is_folded_too():
    norm = nn.BatchNorm2d(3, eps=1e-3).eval()
    nn.init.constant_(norm.running_var, 1e-5)
    nn.init.normal_(norm.running_mean)
    x = torch.randn(2, 3, 4, 4)
    scale, shift = fold._affine(norm)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], norm(x))


def depthwise(shape, form, inputs):
    """A timer."""
    return float(form == "dense")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["faster_rcnn", "faster_rcnn_v2", "retinanet", "retinanet_v2", "fcos"])
def test_a_folded_pyramid_computes_the_same_with_less(kind):
    detector = clear_detector(kind, "norton-77-all")
    fold_batch_norms(detector)
    choose_forms(detector, pictures()[0], depthwise)
    if kind == "fcos":
        detector.backbone.fpn.extra_blocks = None
    pyramid = copy.deepcopy(detector.backbone.fpn)
    maps = detector.backbone.body(torch.rand(1, 3, 97, 131))
    fold_pyramid(detector)
    assert isinstance(detector.backbone.fpn, FoldedPyramid)
    folded = detector.backbone.fpn(maps)
    for (name, ours), (other, theirs) in zip(folded.items(), pyramid(maps).items(), strict=True):
        assert name == other
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    ours, theirs = (total(count(model, maps)).macs_as_run for model in (detector.backbone.fpn, pyramid))
    assert ours < theirs


def test_layers_that_an_image_does_not_reach_are_deployed_too():
    detector = clear_detector("mask_rcnn", "norton-77-all")
    detector.roi_heads.score_thresh = 1.0
    choose_forms(detector, pictures()[0], depthwise)
    assert not [name for name, layer in detector.named_modules() if isinstance(layer, CPConv2d)]


@pytest.mark.parametrize("why", ["one level", "a norm on the lateral", "a norm on the output", "dense"])
def test_a_pyramid_whose_algebra_does_not_hold_is_left_alone(why):
    detector = clear_detector("faster_rcnn", "norton-77-all")
    pyramid = detector.backbone.fpn
    if why != "dense":
        choose_forms(detector, pictures()[0], depthwise)
        assert isinstance(pyramid.layer_blocks[0][0], DepthwiseCPConv2d)
    if why == "one level":
        pyramid.inner_blocks, pyramid.layer_blocks = pyramid.inner_blocks[:1], pyramid.layer_blocks[:1]
    blocks = {"a norm on the lateral": pyramid.inner_blocks, "a norm on the output": pyramid.layer_blocks}
    if why in blocks:
        blocks[why][0].append(nn.GroupNorm(32, 64))
    fold_pyramid(detector)
    assert detector.backbone.fpn is pyramid


def test_a_norm_that_depends_on_its_input_stays_behind_its_convolution():
    detector = clear_detector("faster_rcnn_v2", body="resnet18")
    block = Conv2dNormActivation(64, 64, norm_layer=lambda channels: nn.GroupNorm(32, channels))
    detector.roi_heads.box_head.insert(0, block)
    expected = outputs(detector)
    fold_batch_norms(detector)
    assert isinstance(block[1], nn.GroupNorm)
    for ours, theirs in zip(outputs(detector), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
