"""NMS of a graph against torchvision's."""

import pytest
import torch
from torchvision.ops import batched_nms

from norton_det.deploy.nms import FEW, move_aside, suppress


def scattered(count):
    """Boxes xyxy, their scores, and labels."""
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, generator=generator) * 1200
    boxes = torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 130], dim=1)
    labels = torch.randint(1, 91, (count,), generator=generator) // 30
    return boxes, torch.rand(count, generator=generator), labels


@pytest.mark.parametrize("count", [1, 300, FEW, FEW + 1, 3000])
def test_it_keeps_the_boxes_that_torchvision_keeps(count):
    """Beside twice as many that are no candidates, which are far away and would win."""
    boxes, scores, labels = scattered(count)
    others = torch.rand(2 * count, 4) * 9e3
    moved = move_aside(
        torch.cat([boxes, others])[None],
        torch.cat([labels, labels, labels])[None],
        torch.arange(3 * count)[None] < count,
    )
    of_group = torch.where(labels == torch.arange(4)[:, None], scores, -1.0)
    left = suppress(moved[:, :count], of_group[None], 0.5)[0].amax(dim=0)
    [kept] = torch.where(left >= 0)
    assert torch.equal(kept, batched_nms(boxes, scores, labels, 0.5).sort().values)
    assert count < 2 or 0 < len(kept) < count
    assert torch.equal(left[kept], scores[kept])


def test_where_some_are_enough_the_best_of_each_group_are_left():
    boxes, scores, labels = scattered(300)
    of_group = torch.where(labels == torch.arange(4)[:, None], scores, -1.0)[None]
    all_of_it, some = suppress(boxes[None], of_group, 0.5), suppress(boxes[None], of_group, 0.5, 5)
    assert torch.equal(some.topk(5).values, all_of_it.topk(5).values)
    assert torch.equal((some >= 0).sum(dim=2), (all_of_it >= 0).sum(dim=2).clamp(max=5))
