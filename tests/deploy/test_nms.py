"""NMS of a graph against torchvision's."""

import pytest
import torch
from torchvision.ops import batched_nms

from norton_det.deploy.nms import FEW, traced_batched_nms


@pytest.mark.parametrize("count", [0, 1, 300, FEW, FEW + 1, 3000])
def test_it_keeps_the_boxes_that_torchvision_keeps(count):
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, generator=generator) * 1200
    boxes = torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 130], dim=1)
    scores = torch.rand(count, generator=generator)
    labels = torch.randint(1, 91, (count,), generator=generator) // 30
    kept = traced_batched_nms(boxes, scores, labels, 0.5)
    assert torch.equal(kept, batched_nms(boxes, scores, labels, 0.5))
    assert count < 2 or 0 < len(kept) < count
