"""Runs torchvision's detectors on a batch of images at once, in the form that is exported.

Each module stands for a part of a torchvision detector, and shares its layers.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from norton_det.deploy.candidates import (
    Candidates,
    best_first,
    by_image,
    clip,
    has_area,
    has_sides,
    joined,
    take,
    top,
    without_overlaps,
    without_overlaps_by_class,
)
from norton_det.deploy.roi_align import GroupedRoIAlign, PackedRoIAlign

Maps = dict[str, Tensor]
Size = tuple[int, int]


class Rows(NamedTuple):
    """Holds R boxes of a batch one below the other (R, 4), the number of each box's image (R,), and the place of each
    among all B * N boxes (R,)."""

    boxes: Tensor
    images: Tensor
    places: Tensor


def rows_of(boxes: Tensor, is_wanted: Tensor | None) -> Rows:
    """Return as rows the boxes (B, N, 4) where `is_wanted` (B, N), or all (None): then shapes give their number."""
    images, count = boxes.shape[:2]
    if is_wanted is None:
        places = torch.arange(images * count, device=boxes.device)
    else:
        [places] = torch.where(is_wanted.flatten())
    return Rows(boxes.flatten(0, 1)[places], places // count, places)


class Normalised(nn.Module):
    """Normalises and pads images that have their final size already; each is 0 outside its own height and width."""

    mean: Tensor
    std: Tensor

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.divisible = transform.size_divisible
        self.register_buffer("mean", torch.tensor(transform.image_mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(transform.image_std)[:, None, None], persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Return the images (B, 3, H, W), whose heights and widths are (B, 2), with H and W padded to full multiples.

        The division comes last: with a padding of variable size right before it the stem would not run in int8.
        """
        height, width = images.shape[2:]
        is_row = torch.arange(height, device=images.device) < sizes[:, :1]
        is_column = torch.arange(width, device=images.device) < sizes[:, 1:]
        is_inside = (is_row[:, None, :, None] & is_column[:, None, None, :]).to(images)
        inside = (images - self.mean) * is_inside
        return F.pad(inside, (0, -width % self.divisible, 0, -height % self.divisible)) / self.std


class Proposals(nn.Module):
    """Proposes regions, as torchvision's RPN does."""

    def __init__(self, rpn: Any) -> None:
        super().__init__()
        self.head, self.anchor_generator, self.coder = rpn.head, rpn.anchor_generator, rpn.box_coder
        self.before, self.after = rpn._pre_nms_top_n["testing"], rpn._post_nms_top_n["testing"]
        self.iou_threshold, self.least_score, self.least_side = rpn.nms_thresh, rpn.score_thresh, rpn.min_size

    def forward(self, images: Tensor, features: Maps, sizes: Tensor) -> Candidates:
        """Return the regions of each image, the best first; their groups are the levels."""
        maps = list(features.values())
        outputs = zip(*self.head(maps), _anchors(self.anchor_generator, images, maps), strict=True)
        levels = []
        for level, (objectness, deltas, anchors) in enumerate(outputs):
            logits, places = top(objectness.permute(0, 2, 3, 1).flatten(1), self.before)
            codes = take(deltas.permute(0, 2, 3, 1).reshape(deltas.shape[0], -1, 4), places)
            boxes = _decode(self.coder.decode_single, codes, anchors[places])
            levels.append(Candidates(boxes, logits.sigmoid(), torch.full_like(places, level)))
        found = _clipped(joined(levels), sizes)
        is_candidate = has_sides(found.boxes, self.least_side) & (found.scores >= self.least_score)
        candidates = found._replace(scores=torch.where(is_candidate, found.scores, -1.0))
        return without_overlaps(candidates, len(levels), self.iou_threshold, self.after)


class RegionHeads(nn.Module):
    """Runs the heads of an R-CNN; with `is_fixed` on every place for a region, whether it holds one or not."""

    def __init__(self, heads: Any, is_fixed: bool) -> None:
        super().__init__()
        pooling = PackedRoIAlign if is_fixed else GroupedRoIAlign
        for name, module in heads.named_children():
            self.add_module(name, pooling(module) if name.endswith("_roi_pool") else module)
        self.kinds = [kind for kind in ("mask", "keypoint") if getattr(heads, f"{kind}_head") is not None]
        self.coder, self.is_fixed = heads.box_coder, is_fixed
        self.iou_threshold, self.least_score, self.most = (
            heads.nms_thresh,
            heads.score_thresh,
            heads.detections_per_img,
        )

    def forward(
        self, features: Maps, proposals: Candidates, sizes: Tensor, frame: Size
    ) -> tuple[Candidates, Rows, dict[str, Tensor]]:
        """Return what is found (groups are labels), the rows of it to put out, and their masks and heatmaps.

        `frame` is the height and width of the largest image.
        """
        found = self._boxes(features, proposals, sizes, frame)
        rows = rows_of(found.boxes, None if self.is_fixed else found.scores >= 0)
        more = {kind: self._predicted(kind, features, rows, frame) for kind in self.kinds}
        if "mask" in more:
            labels = found.groups.flatten()[rows.places]
            more["mask"] = take(more["mask"].sigmoid(), labels[:, None])
        return found, rows, more

    def _boxes(self, features: Maps, proposals: Candidates, sizes: Tensor, frame: Size) -> Candidates:
        is_region = proposals.scores >= 0
        if self.is_fixed:
            rows = rows_of(proposals.boxes, None)
            back = rows.places
        else:
            is_seen = torch.cat([torch.ones_like(is_region.flatten()[:1]), is_region.flatten()[1:]])  # one at least
            rows = rows_of(proposals.boxes, is_seen)
            back = is_seen.long().cumsum(0) - 1
        logits, codes = self._predicted("box", features, rows, frame)
        boxes = self.coder.decode_single(codes[:, 4:], rows.boxes).unflatten(1, (-1, 4))[back]
        scores = F.softmax(logits, dim=-1)[:, 1:][back]
        boxes, scores = (by_image(values, is_region).transpose(1, 2) for values in (boxes, scores))
        boxes = clip(boxes, sizes)
        is_candidate = (scores > self.least_score) & has_sides(boxes, 1e-2) & is_region[:, None]
        scores = torch.where(is_candidate, scores, -1.0)
        return without_overlaps_by_class(boxes, scores, self.iou_threshold, self.most)

    def _predicted(self, kind: str, features: Maps, rows: Rows, frame: Size) -> Any:
        pool, head, predictor = (getattr(self, f"{kind}_{part}") for part in ("roi_pool", "head", "predictor"))
        pooled, order = pool(features, rows.boxes, rows.images, frame)
        said = predictor(head(pooled))
        if order is None:
            return said
        return said[order] if isinstance(said, Tensor) else tuple(values[order] for values in said)


class Places(nn.Module):
    """Runs the head of a one-stage detector, and all that follows it."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.head, self.anchor_generator = detector.head, detector.anchor_generator
        self.decode = getattr(detector.box_coder, "decode_single", detector.box_coder.decode)
        self.least_score, self.iou_threshold = detector.score_thresh, detector.nms_thresh
        self.candidates, self.most = detector.topk_candidates, detector.detections_per_img
        self.clips_late = getattr(detector, "clips_late", False)

    def forward(self, images: Tensor, features: Maps, sizes: Tensor) -> Candidates:
        """Return what is found; groups are labels."""
        maps = list(features.values())
        levels = []
        for level, anchors in zip(maps, _anchors(self.anchor_generator, images, maps), strict=True):
            outputs = self.head([level])
            logits, centreness = outputs["cls_logits"], outputs.get("bbox_ctrness")
            classes = logits.shape[2]
            # The best pairs of place and class are at the places whose best class is best.
            best = _scores(logits.amax(dim=2, keepdim=True), centreness).flatten(1)
            _, places = top(best, self.candidates)
            scores = _scores(take(logits, places), None if centreness is None else take(centreness, places))
            scores, pairs = top(scores.flatten(1), self.candidates)
            places = take(places, pairs // classes)
            boxes = _decode(self.decode, take(outputs["bbox_regression"], places), anchors[places])
            levels.append(Candidates(boxes, torch.where(scores > self.least_score, scores, -1.0), pairs % classes))
        found = joined(levels)
        if not self.clips_late:
            return without_overlaps(_clipped(found, sizes), classes, self.iou_threshold, self.most)
        found = _clipped(without_overlaps(found, classes, self.iou_threshold, self.most), sizes)
        return best_first(found._replace(scores=torch.where(has_area(found.boxes), found.scores, -1.0)))


def _anchors(generator: Any, images: Tensor, maps: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the anchors (N, 4) of each level, which are the same for all images."""
    [anchors] = generator(ImageList(images, [(0, 0)]), maps)
    each = generator.num_anchors_per_location()
    split: tuple[Tensor, ...] = anchors.split(
        [level.shape[2] * level.shape[3] * count for level, count in zip(maps, each, strict=True)]
    )
    return split


def _decode(decode: Any, codes: Tensor, anchors: Tensor) -> Tensor:
    """Decode codes to boxes (B, N, 4) by a coder that takes (N, 4)."""
    boxes: Tensor = decode(codes.flatten(0, 1), anchors.flatten(0, 1))
    return boxes.view(*codes.shape[:2], 4)


def _clipped(found: Candidates, sizes: Tensor) -> Candidates:
    """Return the candidates with boxes clipped to their images."""
    return found._replace(boxes=clip(found.boxes, sizes))


def _scores(logits: Tensor, centreness: Tensor | None) -> Tensor:
    """Compute scores (B, N, C) from logits: RetinaNet's, or FCOS's if there is a centreness (B, N, 1)."""
    return logits.sigmoid() if centreness is None else (logits.sigmoid() * centreness.sigmoid()).sqrt()
