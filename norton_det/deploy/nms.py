"""NMS whose result has the shape of what it is given: as one node of an ONNX graph, and the same in torch."""

import sys
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

FEW = 1000
"""Up to so many boxes torchvision moves the boxes of each group aside instead of looking at group after group."""


def move_aside(boxes: Tensor, groups: Tensor, is_candidate: Tensor) -> Tensor:
    """Return the boxes with the rounding that they have in `torchvision.ops.batched_nms` on a CPU.

    Where an image has at most FEW candidates, those of each group are moved aside by more than the image's size, and
    what is left of their coordinates decides.

    Args:
        boxes: (B, N, 4) xyxy, not negative.
        groups: the number of each box's group, its class or its level, (B, N).
        is_candidate: whether a box is looked at, (B, N).
    """
    beyond = (boxes * is_candidate[..., None]).amax(dim=(1, 2)) + 1
    is_moved = is_candidate.sum(dim=1) <= FEW
    return boxes + (groups.to(boxes) * (beyond * is_moved)[:, None])[..., None]


def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int = sys.maxsize) -> Tensor:
    """Return the scores, -1 where NMS drops a box or where its score was below 0.

    Args:
        boxes: (B, N, 4) xyxy.
        scores: of the boxes in each group, (B, G, N); groups do not see each other.
        iou_threshold: of two boxes of a group that overlap by more, the one with the lower score is dropped.
        most: boxes that are wanted of a group: of those that NMS keeps the best are enough.
    """
    kept: Tensor = _Suppression.apply(boxes, scores, iou_threshold, most)
    return kept


class _Suppression(torch.autograd.Function):
    """ONNX's NonMaxSuppression finds triples (kept, 3) of image, group and box; their scores go back in place."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
        left = torch.full_like(scores, -1)
        for image, of_image in enumerate(scores):
            for group, of_group in enumerate(of_image):
                [own] = torch.where(of_group >= 0)
                kept = own[nms(boxes[image, own], of_group[own], iou_threshold)[:most]]
                left[image, group, kept] = of_group[kept]
        return left

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, iou_threshold: float, most: int) -> Any:
        numbers = (torch.tensor([most]), torch.tensor([iou_threshold]), torch.tensor([-0.5]))
        kept = g.op("NonMaxSuppression", boxes, scores, *(g.op("Constant", value_t=number) for number in numbers))
        nothing = g.op("ConstantOfShape", g.op("Shape", scores), value_t=torch.tensor([-1.0]))
        left = g.op("ScatterND", nothing, kept, g.op("GatherND", scores, kept))
        left.setType(scores.type())
        return left
