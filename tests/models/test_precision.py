"""Autocast covers a detector's networks and nothing else."""

from contextlib import ExitStack, contextmanager

import pytest
import torch
from detectors import ALL_KINDS, tiny_detector
from torch import nn
from torchvision.models.detection import roi_heads, rpn

from norton_det.models.parts import dense_head, networks, regions
from norton_det.models.precision import lower_networks, networks_in


def batch():
    generator = torch.Generator().manual_seed(1)
    box = torch.tensor([[20.0, 20.0, 70.0, 80.0]])
    target = {"boxes": box, "labels": torch.ones(1, dtype=torch.int64)}
    target["masks"] = torch.zeros(1, 96, 96, dtype=torch.uint8)
    target["masks"][0, 20:80, 20:70] = 1
    target["keypoints"] = torch.cat([torch.rand(1, 17, 2, generator=generator) * 50 + 20, torch.ones(1, 17, 1)], 2)
    return [torch.rand(3, 96, 96, generator=generator) for _ in range(2)], [target, target]


def flat(value):
    """The tensors in nested sequences and mappings."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in (value.values() if isinstance(value, dict) else value) for tensor in flat(item)]


@contextmanager
def recorded(owner, name, monkeypatch, found):
    """Notes the dtypes of the floating-point tensors that a function is given and gives."""
    original = getattr(owner, name)

    def tensors(value):
        if isinstance(value, torch.Tensor):
            return [value] if value.is_floating_point() else []
        return [t for item in value for t in tensors(item)] if isinstance(value, list | tuple) else []

    def spy(*args, **kwargs):
        result = original(*args, **kwargs)
        found.setdefault(name, set()).update(t.dtype for t in tensors([*args, *kwargs.values(), result]))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, spy)
        yield


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_networks_run_in_lower_precision_and_all_else_in_float32(kind, precision, monkeypatch):
    detector = tiny_detector(kind, "resnet18").train()
    products = {
        n: m for n, m in detector.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    }
    low = {}
    hooks = [m.register_forward_hook(lambda m, i, o, n=n: low.update({n: o.dtype})) for n, m in products.items()]
    high = {}
    is_rcnn = hasattr(detector, "rpn")
    anchors = detector.rpn.anchor_generator if is_rcnn else detector.anchor_generator
    with ExitStack() as spies:
        spies.enter_context(recorded(anchors, "forward", monkeypatch, high))
        if is_rcnn:
            for owner, name in (
                (detector.rpn.box_coder, "decode"),
                (detector.roi_heads.box_coder, "encode"),
                (rpn.box_ops, "batched_nms"),
                (detector.roi_heads.box_roi_pool, "forward"),
                (roi_heads, "fastrcnn_loss"),
            ):
                spies.enter_context(recorded(owner, name, monkeypatch, high))
        else:
            spies.enter_context(recorded(detector.head, "compute_loss", monkeypatch, high))
        spies.enter_context(networks_in(detector, precision))
        losses = detector(*batch())
        sum(losses.values()).backward()
    for hook in hooks:
        hook.remove()
    assert low == dict.fromkeys(products, precision)
    names = {"forward", *(("decode", "encode", "batched_nms", "fastrcnn_loss") if is_rcnn else ("compute_loss",))}
    assert high == {name: {torch.float32} for name in names}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in detector.parameters())


def test_it_ends_where_it_is_left_and_float32_changes_nothing():
    detector, (images, _) = tiny_detector("faster_rcnn", "resnet18"), batch()
    with torch.no_grad():
        before = detector.backbone(images[0][None])["0"]
        with networks_in(detector, torch.float32):
            assert torch.equal(detector.backbone(images[0][None])["0"], before)
        with pytest.raises(RuntimeError, match="stop"), networks_in(detector, torch.bfloat16):
            assert not torch.equal(detector.backbone(images[0][None])["0"], before)
            raise RuntimeError("stop")
        assert torch.equal(detector.backbone(images[0][None])["0"], before)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_networks_that_are_cast_for_good_give_what_autocast_gives(kind):
    detector, (images, _) = tiny_detector(kind, "resnet18"), batch()
    pixels = torch.stack(images)

    def outputs():
        levels = detector.backbone(pixels)
        found = [*levels.values(), dense_head(detector)(list(levels.values()))]
        for pooler, head, predictor in regions(detector).values():
            maps = torch.rand(5, 64, *pooler.output_size, generator=torch.Generator().manual_seed(0))
            found.append(predictor(head(maps)))
        return flat(found)

    with torch.no_grad():
        exact = outputs()
        with networks_in(detector, torch.bfloat16):
            expected = outputs()
        lower_networks(detector, torch.float32)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs(), exact, strict=True))
        lower_networks(detector, torch.bfloat16)
        found = outputs()
        assert detector(images)[0]["boxes"].dtype == torch.float32
    for ours, theirs, before in zip(found, expected, exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.05 * theirs.norm()  # rounded to 8 bits, layer after layer
        assert not torch.equal(ours, before)
    assert {p.dtype for network in networks(detector) for p in network.parameters()} == {torch.bfloat16}
