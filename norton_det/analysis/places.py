"""Finds where in its pyramid a one-stage detector found something, and what it looked at there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import clip_boxes_to_image

from norton_det.models.parts import part_layers

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Place:
    """Names the anchor that gave a detection, and what the classification head sees from there.

    Attributes:
        level: the pyramid's level, counted from the finest.
        index: the anchor's index among those of its level, in the order of the head's outputs.
        window: the cells of the level's map that the head sees: (top, left, bottom, right), from `top` to before
            `bottom`.
    """

    level: int
    index: int
    window: tuple[int, int, int, int]


@torch.inference_mode()
def find_place(detector: Any, image: Tensor, box: Tensor, label: int, score: float) -> tuple[Place, Box]:
    """Find the anchor whose decoded box and score a detection has, and the part of the image that its window covers.

    The detector is in evaluation mode; `image` is float RGB (3, H, W), `box` (4,) is xyxy in its pixels. The returned
    part of the image is xyxy in pixels too.
    """
    batch, _ = detector.transform([image])
    size: tuple[int, int] = batch.image_sizes[0]
    levels = list(detector.backbone(batch.tensors).values())
    outputs = detector.head(levels)
    [anchors] = detector.anchor_generator(batch, levels)
    decode = detector.box_coder.decode_single if isinstance(detector, RetinaNet) else detector.box_coder.decode
    boxes = clip_boxes_to_image(decode(outputs["bbox_regression"][0], anchors), size)
    boxes = resize_boxes(boxes, size, image.shape[1:])
    distances = (boxes - box).abs().amax(dim=1) + (_scores(outputs, label) - score).abs()
    cells = [level.shape[2] * level.shape[3] for level in levels]
    a_cell = len(anchors) // sum(cells)
    level, index = _split([count * a_cell for count in cells], int(distances.argmin()))

    height, width = levels[level].shape[2:]
    row, column = divmod(index // a_cell, width)
    vertical, horizontal = _reach(detector)
    top, bottom, *rows = _span(row, vertical, batch.tensors.shape[2] / height, size[0])
    left, right, *columns = _span(column, horizontal, batch.tensors.shape[3] / width, size[1])
    corners = torch.tensor([[columns[0], rows[0], columns[1], rows[1]]])
    x1, y1, x2, y2 = resize_boxes(corners, size, image.shape[1:])[0].tolist()
    return Place(level, index, (top, left, bottom, right)), (x1, y1, x2, y2)


def _scores(outputs: dict[str, Tensor], label: int) -> Tensor:
    """Return the score of a class at every anchor (n,), as torchvision computes it."""
    scores = outputs["cls_logits"][0, :, label].sigmoid()
    if "bbox_ctrness" in outputs:
        scores = torch.sqrt(scores * outputs["bbox_ctrness"][0, :, 0].sigmoid())
    return scores


def _split(counts: Sequence[int], index: int) -> tuple[int, int]:
    """Return which of the counts an index falls into, and the index within it."""
    for number, count in enumerate(counts):
        if index < count:
            return number, index
        index -= count
    raise IndexError(index)


def _reach(detector: Any) -> tuple[int, int]:
    """Return how many cells the classification head sees above and beside its own: half of every kernel."""
    tower = [detector.get_submodule(name) for name in part_layers(detector, "classification_head")]
    convs = [*tower, detector.head.classification_head.cls_logits]
    vertical, horizontal = (
        sum(conv.kernel_size[side] // 2 * conv.dilation[side] for conv in convs) for side in (0, 1)
    )
    return vertical, horizontal


def _span(cell: int, reach: int, pixels: float, length: int) -> tuple[int, int, float, float]:
    """Return the cells at most `reach` from one, as first and last + 1, and the span of pixels that they cover.

    A cell is `pixels` long; cells that begin beyond the picture's `length`, in the padding, are left out.
    """
    first, last = max(0, cell - reach), min(cell + reach + 1, math.ceil(length / pixels))
    return first, last, first * pixels, min(last * pixels, length)
