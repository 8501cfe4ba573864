"""Measures how far a detector is from the one that it was made of, on a batch of images without labels.

Everything that the detector hands on is compared, where the teacher has found something: the levels of the pyramid,
what the dense head says of every place, and for an R-CNN what its heads say of the teacher's regions. A term is 0
where both agree, and each has one weight, the same for all kinds of detectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from norton_det.models.parts import regions
from norton_det.models.precision import networks_in
from norton_det.models.smaller_images import pyramid_at_places, said_at_places, share_of_images, shrink_batch

PROPOSALS = 64
"""How many of the teacher's best proposals of each image both box heads look at."""
DETECTIONS = 16
"""How many of the teacher's best detections among them the mask and keypoint heads look at."""
WEIGHTS = {
    "pyramid": 1.0,
    "places": 0.25,
    "place boxes": 0.25,
    "centres": 0.25,
    "classes": 1.0,
    "boxes": 0.5,
    "masks": 1.0,
    "keypoints": 0.5,
}
Pyramid = Mapping[str, Tensor]


def imitation_losses(
    student: Any, teacher: Any, batch: ImageList, precision: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return the weighted terms by name, scalars to be summed; networks run in `precision`, all else in float32.

    Both are detectors of one kind in evaluation mode; the batch is what the teacher's transform makes of images. A
    student `for_smaller_images` sees it shrunk, and is compared with what the teacher says of the same places.
    """
    share = share_of_images(student, teacher)
    seen = shrink_batch(batch, share)
    with networks_in(teacher, precision), networks_in(student, precision):
        with torch.no_grad():
            pyramid: Pyramid = teacher.backbone(batch.tensors)
            said, proposals = _look(teacher, batch, pyramid)
        found: Pyramid = student.backbone(seen.tensors)
        places, _ = _look(student, seen, found, propose=False)
        with torch.no_grad():
            wanted = pyramid_at_places(pyramid, found, share)
            levels, ours = [*pyramid.values()], [*found.values()]
            wanted_places = [said_at_places(values, levels, ours, share) for values in said]
        losses = {"pyramid": pyramid_loss(found, wanted), **_place_losses(places, wanted_places)}
        if proposals:
            views = _View(student, found, seen, share), _View(teacher, pyramid, batch)
            losses |= _region_losses(*views, proposals)
    return {name: WEIGHTS[name] * loss for name, loss in losses.items()}


@dataclass(frozen=True)
class _View:
    """Holds a detector, its pyramid of a batch, and the share of the teacher's images that the batch's have."""

    detector: Any
    pyramid: Pyramid
    batch: ImageList
    share: float = 1.0

    def say(self, kind: str, boxes: list[Tensor]) -> Any:
        """Return what a head says of regions, which are given in pixels of the teacher's images."""
        region = regions(self.detector)[kind]
        own = [self.share * theirs for theirs in boxes]
        return region.predictor(region.head(region.pooler(self.pyramid, own, self.batch.image_sizes)))


def pyramid_loss(student: Pyramid, teacher: Pyramid) -> Tensor:
    """Return how far a pyramid is from its teacher's, a scalar: 0 where they are equal, 1 where the student is all
    zero.

        mean over the levels of  mean((student - teacher)^2) / mean(teacher^2)

    Each level's means are over all its (N, C, H, W) values, so the scale of the features does not matter.
    """
    shares = [F.mse_loss(student[level], wanted) / wanted.square().mean() for level, wanted in teacher.items()]
    return torch.stack(shares).mean()


def _look(detector: Any, batch: ImageList, pyramid: Pyramid, propose: bool = True) -> tuple[Any, list[Tensor]]:
    """Return what the dense head says of all anchors: logits (N, M, K), deltas (N, M, 4) and, for FCOS, centre logits
    (N, M, 1); for an R-CNN return the best proposals of each image too."""
    levels = list(pyramid.values())
    if not hasattr(detector, "rpn"):
        said = detector.head(levels)
        order = ("cls_logits", "bbox_regression", "bbox_ctrness")
        return [said[name] for name in order if name in said], []
    if not propose:
        return _by_image(detector.rpn.head(levels)), []
    said = []
    hook = detector.rpn.head.register_forward_hook(lambda _, inputs, output: said.append(output))
    try:
        proposals, _ = detector.rpn(batch, pyramid)
    finally:
        hook.remove()
    return _by_image(said[0]), [boxes[:PROPOSALS] for boxes in proposals]


def _by_image(said: tuple[list[Tensor], list[Tensor]]) -> list[Tensor]:
    """Return what an RPN's head says of all anchors, (N, M, 1) and (N, M, 4)."""
    count = len(said[0][0])
    return [values.reshape(count, -1, values.shape[1]) for values in concat_box_prediction_layers(*said)]


def _place_losses(found: list[Tensor], wanted: list[Tensor]) -> dict[str, Tensor]:
    """Return the losses of what the dense head says; a place counts for as much as the teacher sees something
    there."""
    seen = wanted[0].sigmoid()
    mass = seen.sum().clamp_min(1)
    best = seen.amax(-1, keepdim=True)
    losses = {
        "places": _binary_divergence(found[0], wanted[0]).sum() / mass,
        "place boxes": _weighted(F.l1_loss(found[1], wanted[1], reduction="none"), best),
    }
    if len(found) > 2:
        losses["centres"] = _weighted(_binary_divergence(found[2], wanted[2]), best)
    return losses


def _region_losses(student: _View, teacher: _View, proposals: list[Tensor]) -> dict[str, Tensor]:
    """Return the losses of what the heads say of the same regions, which each detector pools from its own pyramid."""
    with torch.no_grad():
        wanted_logits, wanted_deltas = teacher.say("box", proposals)
        heads, sizes = teacher.detector.roi_heads, teacher.batch.image_sizes
        boxes, _, labels = heads.postprocess_detections(wanted_logits, wanted_deltas, proposals, sizes)
        boxes, labels = ([best[:DETECTIONS] for best in found] for found in (boxes, labels))
    logits, deltas = student.say("box", proposals)
    likely = wanted_logits.softmax(-1)
    ours, theirs = (values.reshape(len(values), -1, 4)[:, 1:] for values in (deltas, wanted_deltas))
    losses = {
        "classes": F.kl_div(logits.log_softmax(-1), likely, reduction="batchmean"),
        "boxes": _weighted(F.l1_loss(ours, theirs, reduction="none"), likely[:, 1:, None]),
    }
    for kind in (kind for kind in ("mask", "keypoint") if kind in regions(teacher.detector) and any(map(len, boxes))):
        with torch.no_grad():
            target = teacher.say(kind, boxes)
        maps = student.say(kind, boxes)
        if kind == "mask":
            label = torch.cat(labels)
            every = torch.arange(len(label), device=label.device)
            losses["masks"] = _binary_divergence(maps[every, label], target[every, label]).mean()
        else:
            maps, target = (heat.flatten(0, 1).flatten(1) for heat in (maps, target))
            losses["keypoints"] = F.kl_div(maps.log_softmax(-1), target.softmax(-1), reduction="batchmean")
    return losses


def _binary_divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the KL divergence of the probabilities that two logits stand for, element by element."""
    chance = wanted.sigmoid()
    cross, own = (F.binary_cross_entropy_with_logits(x, chance, reduction="none") for x in (logits, wanted))
    return cross - own


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of values, weighted by what broadcasts to them."""
    weights = weights.expand_as(values)
    return (values * weights).sum() / weights.sum().clamp_min(1)
