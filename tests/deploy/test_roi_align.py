"""Other forms of RoIAlign against torchvision's."""

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from norton_det.deploy.roi_align import GroupedRoIAlign, PackedRoIAlign
from norton_det.models.bags import BagRoIAlign
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


@pytest.mark.parametrize("form", [GroupedRoIAlign, PackedRoIAlign, BagRoIAlign])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kind", POOLERS)
def test_it_pools_what_torchvision_does(form, images, kind):
    regions = [boxes(200 - 50 * seed, seed) for seed in range(images)]
    if form is PackedRoIAlign:  # which takes none beyond the border
        regions = [clip_boxes_to_image(of_image, (1000, 2040)) for of_image in regions]
    expected = POOLERS[kind]()(maps(images), regions, [(1000, 2040)] * images)
    if form is BagRoIAlign:
        found = form(POOLERS[kind]())(maps(images), regions, [(1000, 2040)] * images)
    else:
        numbers = torch.repeat_interleave(torch.tensor([len(of_image) for of_image in regions]))
        found, order = form(POOLERS[kind]())(maps(images), torch.cat(regions), numbers, (1000, 2040))
        found = found if order is None else found[order]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


def test_regions_thinner_than_a_position_at_a_levels_end_are_pooled_alike():
    ends = torch.rand(50, 1) * torch.tensor([[3.0, 3.0]])
    thin = torch.cat([torch.tensor([2048.0, 1024.0]) - ends, torch.tensor([[2048.0, 1024.0]]).expand(50, 2)], dim=1)
    expected = pooler()(maps(1), [thin], [(1024, 2048)])
    found, _ = PackedRoIAlign(pooler())(maps(1), thin, torch.zeros(50, dtype=torch.long), (1024, 2048))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


def test_scales_that_a_pooler_has_chosen_stay():
    chosen = pooler()
    chosen(maps(1), [boxes(1, 0)], [(512, 1024)])
    arguments = maps(1), [boxes(200, 0)], [(1024, 2048)]
    torch.testing.assert_close(BagRoIAlign(chosen)(*arguments), chosen(*arguments), rtol=1e-4, atol=1e-4)


def test_no_regions_give_no_features():
    assert BagRoIAlign(pooler())(maps(1), [torch.zeros(0, 4)], [(1024, 2048)]).shape == (0, 8, 7, 7)
