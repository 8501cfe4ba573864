"""Replaces torchvision's modules in a detector where another library, Detectron2, computes otherwise.

A detector's settings (`models/settings.py`) tell which of them it has.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import RetinaNet, _utils
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes, resize_keypoints
from torchvision.ops import MultiScaleRoIAlign, boxes, roi_align
from torchvision.ops.poolers import _filter_input, _setup_scales

Images = Literal["torchvision", "detectron2"]


class ExactAnchors(AnchorGenerator):  # type: ignore[misc]
    """Generates torchvision's anchors, in its order, but not rounded to pixels, and on levels with given strides.

    torchvision takes as a level's stride how often the level goes into the padded image, which is too little where
    the level was rounded up. The first anchors' centre lies at `offset` strides from the image's corner.
    """

    cell_anchors: list[Tensor]

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float = 0.0,
    ) -> None:
        super().__init__(sizes, aspect_ratios)
        self.strides, self.offset = tuple(strides), offset
        self.cell_anchors = [cell + offset * s for cell, s in zip(self.cell_anchors, strides, strict=True)]

    def generate_anchors(self, scales: Sequence[float], aspect_ratios: Sequence[float], *_: Any, **__: Any) -> Tensor:
        """Return the anchors around the origin (n, 4)."""
        halves = [
            (size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2) for ratio in aspect_ratios for size in scales
        ]
        return torch.tensor([[-x, -y, x, y] for x, y in halves], device="cpu")

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors (n, 4) of each image, level after level."""
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        sizes = [level.shape[-2:] for level in feature_maps]
        anchors = torch.cat(self.grid_anchors(sizes, [[stride, stride] for stride in self.strides]))
        return [anchors for _ in image_list.image_sizes]


class Level(NamedTuple):
    """Holds a map (B, C, H, W) to pool from, its scale (its sides over the image's) and its regions' indices."""

    map: Tensor
    scale: float
    members: Tensor


class LevelRoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]
    """Pools as torchvision's pooler, and can also be `aligned`: samples lie half a pixel nearer to the corner, and
    regions may be smaller than a pixel of the map."""

    scales: Any
    map_levels: Any

    def __init__(self, *arguments: Any, aligned: bool = False, **canonical: int) -> None:
        super().__init__(*arguments, **canonical)
        self.aligned = aligned

    def assigned(
        self, x: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[float], Tensor]:
        """Return the maps, their scales, and for each region the number of the map that torchvision pools it from; a
        pooler's first call decides its scales."""
        maps = _filter_input(x, self.featmap_names)
        if self.scales is None or self.map_levels is None:
            self.scales, self.map_levels = _setup_scales(maps, sizes, self.canonical_scale, self.canonical_level)
        return maps, self.scales, self.map_levels(boxes)

    def levels(self, x: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> list[Level]:
        """Return the levels, each with the regions that torchvision pools there."""
        maps, scales, level_of = self.assigned(x, boxes, sizes)
        members = [torch.where(level_of == level)[0] for level in range(len(maps))]
        return [Level(*level) for level in zip(maps, scales, members, strict=True)]

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Return pooled features (N, C, h, w) of the boxes (N, 4) of all images in their order."""
        image = torch.cat([torch.full_like(found[:, :1], number) for number, found in enumerate(boxes)])
        regions = torch.cat([image, torch.cat(boxes)], dim=1)
        levels = self.levels(x, boxes, image_shapes)
        pooled = levels[0].map.new_zeros(len(regions), levels[0].map.shape[1], *self.output_size)
        for level in levels:
            pooled[level.members] = self.pool(level.map, level.scale, regions[level.members]).to(pooled.dtype)
        return pooled

    def pool(self, features: Tensor, scale: float, regions: Any) -> Tensor:
        """Return pooled features of regions of a map, given as torchvision's `roi_align` takes boxes."""
        found: Tensor = roi_align(features, regions, self.output_size, scale, self.sampling_ratio, self.aligned)
        return found


class LateClippingRetinaNet(RetinaNet):  # type: ignore[misc]
    """Detects as torchvision's RetinaNet; with `clips_late` it clips boxes to the image after NMS, not before it."""

    clips_late = False

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Return the detections of each image, from what the head says of each level's anchors."""
        if not self.clips_late:
            found: list[dict[str, Tensor]] = super().postprocess_detections(head_outputs, anchors, image_shapes)
            return found
        said = zip(*head_outputs["cls_logits"], strict=True), zip(*head_outputs["bbox_regression"], strict=True)
        return [self._detect(*of_image) for of_image in zip(*said, anchors, image_shapes, strict=True)]

    def _detect(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], anchors: list[Tensor], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        levels = [self._candidates(*level) for level in zip(logits, deltas, anchors, strict=True)]
        found, scores, labels = (torch.cat(values) for values in zip(*levels, strict=True))
        keep = boxes.batched_nms(found, scores, labels, self.nms_thresh)[: self.detections_per_img]
        found, scores, labels = boxes.clip_boxes_to_image(found[keep], size), scores[keep], labels[keep]
        seen = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])
        return {"boxes": found[seen], "scores": scores[seen], "labels": labels[seen]}

    def _candidates(self, logits: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best candidates of a level, not clipped: boxes, scores and labels."""
        scores = logits.sigmoid().flatten()
        indices = torch.where(scores > self.score_thresh)[0]
        scores, best = scores[indices].topk(_utils._topk_min(indices, self.topk_candidates, 0))
        indices, classes = indices[best], logits.shape[-1]
        places = torch.div(indices, classes, rounding_mode="floor")
        return self.box_coder.decode_single(deltas[places], anchors[places]), scores, indices % classes


class Detectron2Transform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Transforms as torchvision does, but resizes images as Detectron2 resizes photos of 8 bits, and pastes masks
    where their boxes lie to a fraction of a pixel."""

    def normalize(self, image: Tensor) -> Tensor:
        """Return the image as it is: it is normalised later, when its size is final, before it is padded."""
        return image

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """Return the images normalised, as a batch padded with zeros, (B, 3, H, W)."""
        batch: Tensor = super().batch_images([self._normalized(image) for image in images], size_divisible)
        return batch

    def _normalized(self, image: Tensor) -> Tensor:
        normalized: Tensor = super().normalize(image)
        return normalized

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """Resize an image (3, H, W) in 0 to 1, with its target, to the size at which the network looks at it."""
        if self.training and self._skip_resize:
            return image, target
        old: tuple[int, int] = (image.shape[1], image.shape[2])
        shortest = self.torch_choice(self.min_size) if self.training else self.min_size[-1]
        size = self.fixed_size[::-1] if self.fixed_size else shortest_edge_size(old, shortest, self.max_size)
        if target is not None:
            target = {**target, "boxes": resize_boxes(target["boxes"], old, size)}
            if "keypoints" in target:
                target["keypoints"] = resize_keypoints(target["keypoints"], old, size)
            if "masks" in target:
                target["masks"] = F.interpolate(target["masks"][:, None].float(), size)[:, 0].byte()
        return resize_photo(image, size), target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Return detections in the pixels of the original images; masks (N, 1, H, W) are probabilities."""
        if self.training:
            return result
        masks = [found.pop("masks", None) for found in result]
        scaled: list[dict[str, Tensor]] = super().postprocess(result, image_shapes, original_image_sizes)
        for found, of_boxes, size in zip(scaled, masks, original_image_sizes, strict=True):
            if of_boxes is not None:
                found["masks"] = paste_masks(of_boxes, found["boxes"], size)
        return scaled


TRANSFORMS: dict[Images, type[GeneralizedRCNNTransform]] = {
    "torchvision": GeneralizedRCNNTransform,
    "detectron2": Detectron2Transform,
}


def shortest_edge_size(size: tuple[int, int], shortest: int, longest: int) -> tuple[int, int]:
    """Return the size (height, width) of an image whose shorter side becomes `shortest` long, or less, so that no
    side is longer than `longest`; halves are rounded up.

    Examples:
        >>> shortest_edge_size((427, 640), 800, 1333)
        (800, 1199)
    """
    scale = shortest / min(size)
    sides = [shortest if side == min(size) else side * scale for side in size]
    if max(sides) > longest:
        scale = longest / max(sides)
        sides = [side * scale for side in sides]
    height, width = (int(side + 0.5) for side in sides)
    return height, width


def resize_photo(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a photo (3, H, W) in 0 to 1 as Pillow resizes one of 8 bits: bilinear over all pixels that a new one
    covers. Some values differ by one of 255."""
    pixels = (image * 255).round().clamp(0, 255).to("cpu", torch.uint8)
    resized = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    return resized.to(image) / 255


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Paste masks (N, 1, M, M) into images of `size` (height, width), bilinear in their boxes (N, 4), else 0."""
    pasted = masks.new_zeros(len(masks), 1, *size)
    for mask, whole, box in zip(masks, pasted, boxes, strict=True):
        x, y = (_inside(box[side], box[side + 2], size[1 - side]) for side in (0, 1))
        places = [(at + 0.5 - box[side]) / (box[side + 2] - box[side]) * 2 - 1 for side, at in ((0, x), (1, y))]
        grid = torch.stack(torch.meshgrid(*places, indexing="xy"), dim=-1)
        whole[0, y[:, None], x] = F.grid_sample(mask[None], grid[None], align_corners=False)[0, 0]
    return pasted


def _inside(start: Tensor, end: Tensor, length: int) -> Tensor:
    """Return the pixels of a side that lie in an interval, with one more at each end."""
    first, last = max(0, math.floor(start) - 1), min(length, math.ceil(end) + 1)
    return torch.arange(first, max(first, last), device=start.device)
