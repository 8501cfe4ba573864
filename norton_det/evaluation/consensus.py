"""Finds what a detector is sure of: what it finds again in an image that is mirrored, shown smaller, or both.

A detector that finds as well as another one finds something else where both are unsure, so what one of them finds is
a poor truth for the other. What several views of an image have in common is a better one, and it favours neither the
size nor the side at which the image was shown.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor

from norton_det.data.reading import Record
from norton_det.evaluation.agreement import Findings
from norton_det.evaluation.results import encode_mask

SMALLER = 0.85
"""The size of the smaller views, in shares of the whole one."""
IOU = 0.55
"""The least IoU of boxes that are taken for the same object."""


@dataclass(frozen=True)
class View:
    """Says how an image is shown: mirrored or not, and so that it takes a share of the picture's sides."""

    mirrored: bool
    share: float


VIEWS = tuple(View(mirrored, share) for share in (1.0, SMALLER) for mirrored in (False, True))
"""The views of which a consensus is made, the image as it is first."""


@dataclass(frozen=True)
class Shown(Iterable[Tensor]):
    """Shows images (3, H, W) in a view, one after the other.

    A smaller one lies in the upper left corner of a larger picture of one colour: so a detector of any kind sees it
    smaller, and boxes need no scaling.

    Attributes:
        images: the images.
        view: how each is shown.
        sizes: (H, W) of the images that were shown, by index.
    """

    images: Sequence[Tensor]
    view: View
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Tensor]:
        for index, image in enumerate(self.images):
            height, width = self.sizes[index] = image.shape[1], image.shape[2]
            seen = image.flip(2) if self.view.mirrored else image
            below, right = (round(side / self.view.share) - side for side in (height, width))
            colour = seen.mean((1, 2), keepdim=True)
            yield colour + F.pad(seen - colour, (0, right, 0, below))


def back(found: Findings, shown: Shown) -> Findings:
    """Return what was found in a view of images as it lies in the images themselves; masks stay as in the view."""
    keypoints = found.categories.keypoints
    order = list(keypoints.flip) if keypoints else []

    def in_image(result: Record) -> Record:
        height, width = shown.sizes[result["image_id"]]
        x, y, w, h = result["bbox"]
        w, h = min(w, width - x), min(h, height - y)
        changed = {**result, "bbox": [width - x - w if shown.view.mirrored else x, y, w, h]}
        if "keypoints" in result and shown.view.mirrored:
            points = np.array(result["keypoints"]).reshape(-1, 3)[order]
            points[:, 0] = width - points[:, 0]
            changed["keypoints"] = points.flatten().tolist()
        return changed

    results = [in_image(result) for result in found.results]
    return replace(found, results=[result for result in results if min(result["bbox"][2:]) > 0])


def consensus(found: Sequence[Findings], shown: Sequence[Shown], score: float) -> Findings:
    """Return what the views of images have in common, as findings whose score is the mean over the views.

    Findings of a category whose boxes overlap are one object, at most one of a view; its box, mask and keypoints are
    the means of theirs, weighted by their scores. Those of at least `score` are returned.

    Source: weighted boxes fusion, Solovyev, Wang, Gabruseva, Image and Vision Computing 2021.
    """
    candidates: dict[tuple[int, int], list[tuple[int, Record]]] = defaultdict(list)
    for number, (each, view) in enumerate(zip(found, shown, strict=True)):
        for result in back(each, view).results:
            candidates[result["image_id"], result["category_id"]].append((number, result))
    groups = [group for one in candidates.values() for group in _together(one)]
    merged = [
        _merged(group, shown, len(found))
        for group in groups
        if sum(result["score"] for _, result in group) >= score * len(found)
    ]
    return replace(found[0], results=merged)


def _together(candidates: list[tuple[int, Record]]) -> list[list[tuple[int, Record]]]:
    """Put findings of one category in an image together that are of one object, the best first."""
    groups: list[list[tuple[int, Record]]] = []
    boxes: list[list[float]] = []
    for number, result in sorted(candidates, key=lambda each: -each[1]["score"]):
        free = [place for place, group in enumerate(groups) if number not in {view for view, _ in group}]
        overlaps = rle.iou([result["bbox"]], [boxes[place] for place in free], [0] * len(free))[0] if free else []
        best = int(np.argmax(overlaps)) if free else -1
        if free and overlaps[best] >= IOU:
            groups[free[best]].append((number, result))
            boxes[free[best]] = _mean([member for _, member in groups[free[best]]], "bbox")
        else:
            groups.append([(number, result)])
            boxes.append(result["bbox"])
    return groups


def _merged(group: list[tuple[int, Record]], shown: Sequence[Shown], views: int) -> Record:
    """Return one finding of those of several views."""
    members = [result for _, result in group]
    first, scores = members[0], [member["score"] for member in members]
    merged = {
        "image_id": first["image_id"],
        "category_id": first["category_id"],
        "bbox": _mean(members, "bbox"),
        "score": sum(scores) / views,
    }
    if "keypoints" in first:
        merged["keypoints"] = _mean(members, "keypoints")
    if "segmentation" in first:
        masks = [_mask(member, shown[number]) for number, member in group]
        merged["segmentation"] = encode_mask(np.average(masks, axis=0, weights=scores) > 0.5)
    return merged


def _mean(members: Sequence[Record], key: str) -> list[float]:
    mean = np.average([member[key] for member in members], axis=0, weights=[member["score"] for member in members])
    return [float(value) for value in mean]


def _mask(result: Record, shown: Shown) -> NDArray[np.uint8]:
    """Return a finding's mask in the image, (H, W)."""
    height, width = shown.sizes[result["image_id"]]
    mask: NDArray[np.uint8] = rle.decode(result["segmentation"])[:height, :width]
    return mask[:, ::-1] if shown.view.mirrored else mask
