"""torchvision's NMS by class as one node of an ONNX graph."""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.onnx.operators import shape_as_tensor
from torchvision.ops import nms

FEW = 1000
"""Up to so many boxes torchvision moves the boxes of each class aside instead of looking at class after class."""


def traced_batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Return what `torchvision.ops.batched_nms` does on a CPU, with the same rounding, in a graph that is traced.

    There torchvision moves each class's boxes aside however many they are, which rounds thousands of them otherwise
    than without a graph, and branches for no boxes, whose result OpenVINO takes for one box.

    Args:
        boxes: (N, 4) xyxy, not negative.
        scores: (N,).
        idxs: the class of each box, (N,).
        iou_threshold: of two boxes of a class that overlap by more, the one with the lower score is dropped.

    Returns:
        the indices of the boxes that are kept, the highest score first.
    """
    beyond = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    is_moved = (shape_as_tensor(boxes)[0] <= FEW).to(boxes)
    boxes = boxes + (idxs.to(boxes) * beyond * is_moved)[:, None]
    last: Any = torch.cat([idxs, idxs.new_zeros(1)]).max()  # a tensor, so that the graph does not fix it
    classes = torch.arange(last + 1)
    of_class = torch.where(idxs == classes[:, None], scores, -1.0)  # (classes, N)
    kept: Tensor = _NonMaxSuppression.apply(boxes[None], of_class[None], iou_threshold)[:, 2]
    return kept[scores[kept].argsort(descending=True)]


class _NonMaxSuppression(torch.autograd.Function):
    """ONNX's operator: of boxes (1, N, 4) and scores (1, C, N), those below 0 left out, to triples (kept, 3) of
    image, class and box."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
        found = []
        for label, of_class in enumerate(scores[0]):
            [own] = torch.where(of_class >= 0)
            kept = own[nms(boxes[0, own], of_class[own], iou_threshold)]
            found.append(torch.stack([torch.zeros_like(kept), torch.full_like(kept, label), kept], dim=1))
        return torch.cat(found)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, iou_threshold: float) -> Any:
        numbers = (torch.tensor([sys.maxsize]), torch.tensor([iou_threshold]), torch.tensor([-0.5]))
        return g.op("NonMaxSuppression", boxes, scores, *(g.op("Constant", value_t=number) for number in numbers))
