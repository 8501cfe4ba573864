"""Processes candidates as torchvision's detectors do, for all images of a batch at once.

Every shape follows from the size of the images alone: a candidate that torchvision drops keeps its place, with a
score below 0. So an exported graph can have constant shapes, or take any number of images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection._utils import _topk_min

from norton_det.deploy.nms import move_aside, suppress


class Candidates(NamedTuple):
    """Holds boxes (B, N, 4) xyxy in pixels, their scores (B, N), below 0 in a place without a candidate, and the
    numbers of their groups (B, N), which are labels or levels of a pyramid."""

    boxes: Tensor
    scores: Tensor
    groups: Tensor


def top(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the `most` highest scores (B, k) of each image of (B, N), or all, the best first, and their places."""
    values, places = scores.topk(_topk_min(scores, most, 1), dim=1)
    return values, places


def take(values: Tensor, places: Tensor) -> Tensor:
    """Return the values (B, k, ..) at each image's places (B, k) from values (B, N, ..)."""
    images, count = values.shape[:2]
    first = torch.arange(images, device=values.device)[:, None] * count
    return by_image(values.flatten(0, 1)[(first + places).flatten()], places)


def by_image(rows: Tensor, like: Tensor) -> Tensor:
    """Reshape rows (B * N, ..) of all images to (B, N, ..), with the B and N of `like`."""
    return rows.reshape(*like.shape[:2], *rows.shape[1:])


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Return boxes (B, .., 4) clipped to their images, whose heights and widths are (B, 2)."""
    limits = sizes.flip(1).repeat(1, 2).to(boxes)  # width, height, width, height
    return torch.minimum(boxes.clamp_min(0), limits.view(-1, *[1] * (boxes.dim() - 2), 4))


def has_sides(boxes: Tensor, least: float) -> Tensor:
    """Tell whether both sides of boxes (.., 4) are at least `least` long."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= least).all(dim=-1)


def has_area(boxes: Tensor) -> Tensor:
    """Tell whether both sides of boxes (.., 4) are longer than 0."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


def joined(levels: Sequence[Candidates]) -> Candidates:
    """Concatenate the candidates of all levels."""
    return Candidates(*(torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)))


def best_first(found: Candidates) -> Candidates:
    """Sort each image's candidates, the best first."""
    scores, places = top(found.scores, found.scores.shape[1])
    return Candidates(take(found.boxes, places), scores, take(found.groups, places))


def without_overlaps(found: Candidates, groups: int, iou_threshold: float, most: int) -> Candidates:
    """Return the best candidates of each image, at most `most`, after NMS within each of `groups`; the best first."""
    moved = move_aside(found.boxes, found.groups, found.scores >= 0)
    is_own = found.groups[:, None] == torch.arange(groups, device=moved.device)[:, None]
    kept = suppress(moved, torch.where(is_own, found.scores[:, None], -1.0), iou_threshold, most)
    scores, places = top(kept.amax(dim=1), most)
    return Candidates(take(found.boxes, places), scores, take(found.groups, places))


def without_overlaps_by_class(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Candidates:
    """Do the same for boxes (B, C, N, 4) of each class, with scores (B, C, N); groups are labels from 1 on."""
    images, classes, count = scores.shape
    labels = torch.arange(1, classes + 1, device=scores.device)[:, None].expand(classes, count).flatten()[None]
    moved = move_aside(boxes.flatten(1, 2), labels, scores.flatten(1) >= 0)
    kept = suppress(moved.reshape(-1, count, 4), scores.reshape(-1, 1, count), iou_threshold, most)
    best, places = top(kept.reshape(images, -1), most)
    return Candidates(take(boxes.flatten(1, 2), places), best, places // count + 1)
