"""Runs NMS so that its result has the shape of its input: as one node of an ONNX graph, and the same in torch."""

import sys
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

FEW = 1000
"""Up to this number of boxes torchvision moves the groups apart instead of running NMS group by group."""


def move_aside(boxes: Tensor, groups: Tensor, is_candidate: Tensor) -> Tensor:
    """Return the boxes with the rounding that they have in `torchvision.ops.batched_nms` on a CPU.

    If an image has at most FEW candidates, those of each group are moved aside by more than the image's size, which
    rounds their coordinates.

    Args:
        boxes: (B, N, 4) xyxy, not negative.
        groups: the number of each box's group, its class or its level, (B, N).
        is_candidate: whether a box takes part, (B, N).
    """
    beyond = (boxes * is_candidate[..., None]).amax(dim=(1, 2)) + 1
    is_moved = is_candidate.sum(dim=1) <= FEW
    return boxes + (groups.to(boxes) * (beyond * is_moved)[:, None])[..., None]


def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int = sys.maxsize) -> Tensor:
    """Return the scores, with -1 for boxes that NMS drops or whose score was below 0.

    Args:
        boxes: (B, N, 4) xyxy.
        scores: scores of the boxes in each group, (B, G, N); NMS runs in each group on its own.
        iou_threshold: of two boxes of a group that overlap by more, the one with the lower score is dropped.
        most: how many boxes to keep in a group: the best of those that NMS keeps.
    """
    kept: Tensor = _Suppression.apply(boxes, scores, iou_threshold, most)
    return kept


class _Suppression(torch.autograd.Function):
    """Exports as ONNX's NonMaxSuppression, which finds triples (kept, 3) of image, group and box; their scores are
    then put back in place."""

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
