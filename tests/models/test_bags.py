"""Pooling by embedding bags in training steps: gradients and losses against torchvision's own kernel."""

import pytest
import torch
from detectors import frames, tiny_detector
from torchvision.ops import MultiScaleRoIAlign

from norton_det.models.bags import BagRoIAlign, pooling_by_bags
from norton_det.models.parts import regions
from norton_det.models.variants import LevelRoIAlign

SIZE = (160, 200)


def maps():
    generator = torch.Generator().manual_seed(0)
    shapes = {"0": (2, 8, 40, 50), "1": (2, 8, 20, 25)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }


def boxes(seed):
    """Of both levels, some beyond the border."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(30, 2, generator=generator, dtype=torch.float64) * 180 - 20
    return torch.cat([corners, corners + torch.rand(30, 2, generator=generator) ** 2 * 500], dim=1)


def gradients(pooler):
    levels = maps()
    pooled = pooler(levels, [boxes(1), boxes(2)], [SIZE] * 2)
    direction = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.autograd.grad((pooled * direction).sum(), list(levels.values()))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [1, 2, 0])
def test_gradients_of_maps_are_those_of_torchvisions_kernel(ratio, aligned):
    pooler = LevelRoIAlign(["0", "1"], 7, ratio, aligned=aligned, canonical_scale=112)
    expected = gradients(pooler)
    assert all(gradient.abs().max() > 0 for gradient in expected)
    for gradient, other in zip(gradients(BagRoIAlign(pooler)), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-9)


def test_a_second_derivative_is_refused():
    levels = maps()
    pooled = BagRoIAlign(MultiScaleRoIAlign(["0"], 3, 2))(levels, [boxes(1), boxes(2)], [SIZE] * 2)
    [first] = torch.autograd.grad(pooled.square().sum(), [levels["0"]], create_graph=True)
    with pytest.raises(RuntimeError, match="derivative"):
        torch.autograd.grad(first.square().sum(), [levels["0"]])


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet"])
def test_a_detector_pools_by_bags_inside_the_block_alone(kind):
    detector = tiny_detector(kind, "resnet18")
    before = {name: region.pooler for name, region in regions(detector).items()}
    with pytest.raises(KeyboardInterrupt), pooling_by_bags(detector):
        for name, region in regions(detector).items():
            assert isinstance(region.pooler, BagRoIAlign) == (name != "keypoint")
        detector(frames())
        raise KeyboardInterrupt
    assert all(region.pooler is before[name] for name, region in regions(detector).items())
    assert all(region.pooler.scales for region in regions(detector).values())  # what the first call decided stays
