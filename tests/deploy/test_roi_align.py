"""Other forms of RoIAlign against torchvision's."""

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from norton_det.deploy.roi_align import BagRoIAlign, GatheredRoIAlign
from norton_det.models.variants import LevelRoIAlign


def boxes(count, seed):
    """Of all sizes and levels, some beyond the border, some empty."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 500 - 60
    sides = torch.rand(count, 2, generator=generator) ** 3 * 900
    return torch.cat([corners, corners + sides * (torch.arange(count) % 9 > 0)[:, None]], dim=1)


def maps(images):
    generator = torch.Generator().manual_seed(0)
    return {str(level): torch.randn(images, 8, 256 >> level, 512 >> level, generator=generator) for level in range(5)}


def pooler(names="0123", size=7, ratio=2, **canonical):
    return MultiScaleRoIAlign(list(names), size, ratio, **canonical)


def aligned(ratio):
    return LevelRoIAlign(list("0123"), 7, ratio, aligned=True)


POOLERS = {
    "torchvision's": lambda: pooler(),
    "of masks": lambda: pooler(size=14),
    "not square": lambda: pooler(size=(5, 9)),
    "one sample": lambda: pooler(ratio=1),
    "one level": lambda: pooler(names="1"),
    "without the finest": lambda: pooler(names="123"),
    "of five levels": lambda: pooler(names="01234"),
    "of small regions": lambda: pooler(canonical_scale=64, canonical_level=3),
    "as many samples as fit": lambda: pooler(ratio=0),
    "likewise": lambda: pooler(ratio=-1),
    "aligned": lambda: aligned(ratio=2),
    "aligned, as many samples as fit": lambda: aligned(ratio=0),
}


@pytest.mark.parametrize(("form", "images"), [(GatheredRoIAlign, 1), (BagRoIAlign, 1), (BagRoIAlign, 3)])
@pytest.mark.parametrize("kind", POOLERS)
def test_it_pools_what_torchvision_does(form, images, kind):
    regions = [boxes(200 - 50 * seed, seed) for seed in range(images)]
    arguments = maps(images), regions, [(1000, 2040)] * images
    found, expected = form(POOLERS[kind]())(*arguments), POOLERS[kind]()(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_scales_that_a_pooler_has_chosen_stay():
    chosen = pooler()
    chosen(maps(1), [boxes(1, 0)], [(512, 1024)])
    arguments = maps(1), [boxes(200, 0)], [(1024, 2048)]
    torch.testing.assert_close(BagRoIAlign(chosen)(*arguments), chosen(*arguments), rtol=1e-4, atol=1e-4)


def test_no_regions_give_no_features():
    assert BagRoIAlign(pooler())(maps(1), [torch.zeros(0, 4)], [(1024, 2048)]).shape == (0, 8, 7, 7)
