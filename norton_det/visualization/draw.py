"""Drawing predictions and annotations on images: boxes with names, masks, skeletons."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

from norton_det.data.shapes import SKELETON

Picture = npt.NDArray[np.uint8]
_GOLDEN_ANGLE = 0.61803398875
_DRAWN = ("boxes", "labels", "masks", "keypoints")


def category_colour(label: int) -> tuple[int, int, int]:
    """A steady, well-separated RGB colour for a label: hues by the golden angle, two levels of saturation."""
    hue = int(179 * ((label * _GOLDEN_ANGLE) % 1.0))
    pixel = np.array([[[hue, 200 if label % 2 else 255, 235]]], np.uint8)
    red, green, blue = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def draw_predictions(
    image: Tensor, prediction: Mapping[str, Tensor], categories: Sequence[str], confidence: float = 0.5
) -> Tensor:
    """A copy of an image, uint8 RGB (3, H, W), with the predictions of at least `confidence` drawn on it.

    `prediction` is a torchvision detector's dictionary: boxes (N, 4) xyxy pixels, labels, scores, and optionally
    masks (N, 1, H, W) and keypoints (N, 17, 3). Returns uint8 (3, H, W).
    """
    shown = prediction["scores"] >= confidence
    objects = {key: value[shown] for key, value in prediction.items() if key in _DRAWN}
    if "masks" in objects:
        objects["masks"] = objects["masks"][:, 0] >= 0.5
    names = [
        f"{categories[label]} {score:.0%}"
        for label, score in zip(objects["labels"].tolist(), prediction["scores"][shown].tolist(), strict=True)
    ]
    return _draw_objects(image, objects, names)


def draw_targets(image: Tensor, target: Mapping[str, Tensor], categories: Sequence[str]) -> Tensor:
    """A copy of an image, uint8 RGB (3, H, W), with the objects that a detector is trained on drawn on it.

    `target` is a torchvision detector's: boxes (N, 4) xyxy pixels, labels, and optionally masks (N, H, W) and
    keypoints (N, 17, 3), those of visibility 0 not drawn. Returns uint8 (3, H, W).
    """
    objects = {key: value for key, value in target.items() if key in _DRAWN}
    if "masks" in objects:
        objects["masks"] = objects["masks"] > 0
    names = [categories[label] for label in objects["labels"].tolist()]
    visible = target["keypoints"][..., 2] > 0 if "keypoints" in target else None
    return _draw_objects(image, objects, names, visible)


def _draw_objects(
    image: Tensor, objects: Mapping[str, Tensor], names: Sequence[str], visible: Tensor | None = None
) -> Tensor:
    """Objects with boxes, labels and optionally masks (N, H, W) bool and keypoints; `visible`: (N, 17) bool."""
    if not names:
        return image.clone()
    colours = [category_colour(label) for label in objects["labels"].tolist()]
    thickness = max(1, round(min(image.shape[1:]) / 300))
    picture = image
    if "masks" in objects:
        for mask, colour in zip(objects["masks"], colours, strict=True):
            picture = draw_segmentation_masks(picture, mask, alpha=0.45, colors=colour)
    if "keypoints" in objects:
        picture = draw_keypoints(
            picture,
            objects["keypoints"][..., :2],
            connectivity=[(start - 1, end - 1) for start, end in SKELETON],
            colors="yellow",
            radius=thickness + 1,
            width=thickness + 1,
            visibility=visible,
        )
    picture = draw_bounding_boxes(picture, objects["boxes"], colors=colours, width=thickness)
    return _with_labels(picture, objects["boxes"], names, colours)


def side_by_side(pictures: Sequence[Tensor], titles: Sequence[str]) -> Tensor:
    """Pictures of equal height, uint8 (3, H, W), next to each other, each under its title."""
    titled = [with_title(picture, title) for picture, title in zip(pictures, titles, strict=True)]
    return torch.cat(titled, dim=2)


def with_title(picture: Tensor, title: str) -> Tensor:
    """A picture, uint8 RGB (3, H, W), under a bar with a title; the height stays even, as video codecs want."""
    _, height, width = picture.shape
    scale = max(0.4, height / 700)
    (_, text_height), baseline = cv2.getTextSize("Ag", cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    bar_height = text_height + 2 * baseline
    bar = np.full((bar_height + (bar_height + height) % 2, width, 3), 245, np.uint8)
    cv2.putText(
        bar,
        title,
        (4, text_height + baseline - 1),
        cv2.FONT_HERSHEY_SIMPLEX,
        scale,
        (30, 30, 30),
        1,
        cv2.LINE_AA,
    )
    return torch.cat([torch.from_numpy(bar).permute(2, 0, 1), picture], dim=1)


def _with_labels(
    picture: Tensor, boxes: Tensor, names: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> Tensor:
    """Each name on a plate of its colour above its box, moved to stay inside the image."""
    canvas = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    height, width = canvas.shape[:2]
    scale = max(0.32, min(height, width) / 1000)
    for box, name, colour in zip(boxes.tolist(), names, colours, strict=True):
        (text_width, text_height), baseline = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        left = int(max(0, min(box[0], width - text_width - 2)))
        bottom = int(max(text_height + baseline, box[1]))
        cv2.rectangle(canvas, (left, bottom - text_height - baseline), (left + text_width + 2, bottom), colour, -1)
        ink = (
            (0, 0, 0) if sum(w * c for w, c in zip((0.299, 0.587, 0.114), colour, strict=True)) > 140 else (255,) * 3
        )
        origin = (left + 1, bottom - baseline // 2 - 1)
        cv2.putText(canvas, name, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)
    return torch.from_numpy(canvas).permute(2, 0, 1)
