"""Other forms of RoIAlign against torchvision's."""

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from norton_det.deploy.roi_align import BagRoIAlign, GatheredRoIAlign


def boxes(count, seed):
    """Of all sizes and levels, some beyond the border, some empty."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 500 - 60
    sides = torch.rand(count, 2, generator=generator) ** 3 * 900
    return torch.cat([corners, corners + sides * (torch.arange(count) % 9 > 0)[:, None]], dim=1)


def maps(images):
    generator = torch.Generator().manual_seed(0)
    return {str(level): torch.randn(images, 8, 256 >> level, 512 >> level, generator=generator) for level in range(4)}


@pytest.mark.parametrize(("form", "images"), [(GatheredRoIAlign, 1), (BagRoIAlign, 1), (BagRoIAlign, 3)])
@pytest.mark.parametrize("size", [7, 14])
def test_it_pools_what_torchvision_does(form, images, size):
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], size, 2)
    regions = [boxes(200 - 50 * seed, seed) for seed in range(images)]
    expected = pooler(maps(images), regions, [(1024, 2048)] * images)
    torch.testing.assert_close(
        form(pooler)(maps(images), regions, [(1024, 2048)] * images), expected, rtol=1e-4, atol=1e-4
    )


def test_no_regions_give_no_features():
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    assert BagRoIAlign(pooler)(maps(1), [torch.zeros(0, 4)], [(1024, 2048)]).shape == (0, 8, 7, 7)
