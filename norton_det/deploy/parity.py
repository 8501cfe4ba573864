"""Measures how far one detector's findings lie from another's on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BOX_TOLERANCE, SCORE_TOLERANCE = 1e-2, 1e-4
"""Largest differences of boxes in pixels and of scores that float32 may cause."""


@dataclass(frozen=True)
class Parity:
    """Holds the number of expected detections, how many were found again, and how far these lie off.

    `surplus` counts detections beyond as many as an image should have. `box_median`, `box_p99` and `box_max` are
    pixels; a box's difference is the largest of its four numbers'.
    """

    expected: int
    found: int
    surplus: int
    box_median: float
    box_p99: float
    box_max: float
    score_max: float

    @property
    def is_equal(self) -> bool:
        """Tell whether every detection was found within the tolerances of float32, and no others."""
        same = self.found == self.expected and not self.surplus
        return same and self.box_max <= BOX_TOLERANCE and self.score_max <= SCORE_TOLERANCE

    def __str__(self) -> str:
        return (
            f"{self.found} of {self.expected} detections found again, {self.surplus} too many; boxes differ by "
            f"{self.box_median:.2g} pixels in the median, {self.box_p99:.2g} in the 99th percentile, "
            f"{self.box_max:.2g} at most; scores by {self.score_max:.2g} at most"
        )


def parity(found: Sequence[dict[str, Tensor]], expected: Sequence[dict[str, Tensor]]) -> Parity:
    """Compare two detectors' detections of the same images, both torchvision's dictionaries.

    A detection counts as found again if the nearest one of the same label has an IoU of at least 0.5 with it, or lies
    at the same place within the tolerance, as a box without an area overlaps nothing.
    """
    boxes, scores, count, surplus = [], [], 0, 0
    for ours, theirs in zip(found, expected, strict=True):
        count += len(theirs["boxes"])
        surplus += max(0, len(ours["boxes"]) - len(theirs["boxes"]))
        for box, label, score in zip(theirs["boxes"], theirs["labels"], theirs["scores"], strict=True):
            same = ours["labels"] == label
            distances = (ours["boxes"][same] - box).abs().amax(dim=1)
            if len(distances) and _is_found(ours["boxes"][same][distances.argmin()], box):
                boxes.append(distances.min())
                scores.append((ours["scores"][same][distances.argmin()] - score).abs())
    if not boxes:
        return Parity(count, 0, surplus, 0.0, 0.0, 0.0, 0.0)
    pixels = torch.stack(boxes).double()
    return Parity(
        expected=count,
        found=len(boxes),
        surplus=surplus,
        box_median=pixels.median().item(),
        box_p99=pixels.quantile(0.99).item(),
        box_max=pixels.max().item(),
        score_max=torch.stack(scores).max().item(),
    )


def _is_found(found: Tensor, box: Tensor) -> bool:
    return (found - box).abs().max().item() <= BOX_TOLERANCE or _overlap(found, box) >= 0.5


def _overlap(a: Tensor, b: Tensor) -> float:
    """Compute the intersection over union of two boxes xyxy."""
    corners = torch.stack([torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])])
    intersection = (corners[1] - corners[0]).clamp(min=0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - intersection
    return (intersection / union.clamp(min=1e-9)).item()
