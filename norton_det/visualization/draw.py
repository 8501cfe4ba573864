"""Draws predictions and annotations on images: boxes with names, masks, skeletons."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from norton_det import opencv as cv2
from norton_det.keypoints import COCO_KEYPOINTS, Keypoints

Picture = npt.NDArray[np.uint8]
Plate = tuple[int, int, int, int]
"""Left, top, right, bottom."""
Limb = tuple[int, int, tuple[int, int, int]]
"""Two keypoints, by index, and the colour between them."""
_GOLDEN_ANGLE = 0.61803398875
_DRAWN = ("boxes", "labels", "masks", "keypoints")
_LEFT, _RIGHT, _MIDDLE = (255, 159, 28), (46, 196, 241), (122, 229, 130)


def category_colour(label: int) -> tuple[int, int, int]:
    """Return a label's RGB colour, always the same one: hues by the golden angle, two levels of saturation."""
    hue = int(179 * ((label * _GOLDEN_ANGLE) % 1.0))
    pixel = np.array([[[hue, 200 if label % 2 else 255, 235]]], np.uint8)
    red, green, blue = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def draw_predictions(
    image: Tensor,
    prediction: Mapping[str, Tensor],
    categories: Sequence[str],
    confidence: float = 0.5,
    keypoints: Keypoints | None = None,
) -> Tensor:
    """Draw the predictions of at least `confidence` on a copy of an image, uint8 RGB (3, H, W).

    `prediction` is a torchvision detector's dictionary: boxes (N, 4) xyxy pixels, labels, scores, and optionally
    masks (N, 1, H, W) and keypoints (N, K, 3). The skeleton is that of `keypoints`; with None it is COCO's for 17
    keypoints, and other numbers get none. Returns uint8 (3, H, W).
    """
    shown = (prediction["scores"] >= confidence) & (prediction["labels"] > 0)  # 0 is the background
    objects = {key: value[shown] for key, value in prediction.items() if key in _DRAWN}
    if "masks" in objects:
        objects["masks"] = objects["masks"][:, 0] >= 0.5
    names = [
        f"{categories[label]} {score:.0%}"
        for label, score in zip(objects["labels"].tolist(), prediction["scores"][shown].tolist(), strict=True)
    ]
    return _draw_objects(image, objects, names, keypoints)


def draw_targets(
    image: Tensor, target: Mapping[str, Tensor], categories: Sequence[str], keypoints: Keypoints | None = None
) -> Tensor:
    """Draw the objects on which a detector is trained on a copy of an image, uint8 RGB (3, H, W).

    `target` is a torchvision detector's: boxes (N, 4) xyxy pixels, labels, and optionally masks (N, H, W) and
    keypoints (N, K, 3), where those of visibility 0 are not drawn. The skeleton is as for `draw_predictions`. Returns
    uint8 (3, H, W).
    """
    objects = {key: value for key, value in target.items() if key in _DRAWN}
    if "masks" in objects:
        objects["masks"] = objects["masks"] > 0
    names = [categories[label] for label in objects["labels"].tolist()]
    visible = target["keypoints"][..., 2] > 0 if "keypoints" in target else None
    return _draw_objects(image, objects, names, keypoints, visible)


def _draw_objects(
    image: Tensor,
    objects: Mapping[str, Tensor],
    names: Sequence[str],
    keypoints: Keypoints | None,
    visible: Tensor | None = None,
) -> Tensor:
    """Draw objects with boxes, labels and optionally masks (N, H, W) bool and keypoints; `visible` is (N, K) bool."""
    if not names:
        return image.clone()
    colours = [category_colour(label) for label in objects["labels"].tolist()]
    thickness = max(1, round(min(image.shape[1:]) / 220))
    picture = image
    if "masks" in objects:
        for mask, colour in zip(objects["masks"], colours, strict=True):
            picture = draw_segmentation_masks(picture, mask, alpha=0.45, colors=colour)
    if "keypoints" in objects:
        points = objects["keypoints"][..., :2]
        if keypoints is None and points.shape[1] == COCO_KEYPOINTS.count:
            keypoints = COCO_KEYPOINTS
        picture = _with_skeletons(picture, points, _limbs(keypoints) if keypoints else [], visible, thickness)
    picture = draw_bounding_boxes(picture, objects["boxes"], colors=colours, width=thickness)
    return _with_labels(picture, objects["boxes"], names, colours)


def _with_skeletons(
    picture: Tensor, objects: Tensor, limbs: Sequence[Limb], visible: Tensor | None, thickness: int
) -> Tensor:
    """Draw the points (N, K, 2) of each object, and limbs between them."""
    canvas = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    if visible is None:
        visible = torch.ones(objects.shape[:2], dtype=torch.bool)
    for points, seen in zip(objects.round().int().tolist(), visible.tolist(), strict=True):
        for start, end, colour in limbs:
            if seen[start] and seen[end]:
                cv2.line(canvas, points[start], points[end], colour, thickness + 1, cv2.LINE_AA)
        for point in itertools.compress(points, seen):
            cv2.circle(canvas, point, thickness + 1, (255, 255, 255), cv2.FILLED, cv2.LINE_AA)
    return torch.from_numpy(canvas).permute(2, 0, 1)


def _limbs(keypoints: Keypoints) -> list[Limb]:
    """Return the limbs of a skeleton, with one colour for the left side, one for the right, and one for the rest.

    Of two keypoints that a mirror swaps, the first is on the left, as in COCO.
    """
    sides = [np.sign(partner - index) for index, partner in enumerate(keypoints.flip)]
    colours = {(1, 1): _LEFT, (-1, -1): _RIGHT}
    return [(start, end, colours.get((sides[start], sides[end]), _MIDDLE)) for start, end in keypoints.skeleton]


def side_by_side(pictures: Sequence[Tensor], titles: Sequence[str]) -> Tensor:
    """Put pictures of equal height, uint8 (3, H, W), side by side, each under its title."""
    titled = [with_title(picture, title) for picture, title in zip(pictures, titles, strict=True)]
    return torch.cat(titled, dim=2)


def with_title(picture: Tensor, title: str) -> Tensor:
    """Put a picture, uint8 RGB (3, H, W), under a bar with a title; the height becomes even, as video codecs want."""
    _, height, width = picture.shape
    (unscaled, _), _ = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, 1, 1)
    fitting = 0.95 * (width - 8) / max(1, unscaled)  # a text's width does not grow quite evenly with its scale
    scale = max(0.4, min(height / 700, fitting))
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
    """Draw each name on a plate of its colour at its box, inside the image, and beside other plates if possible."""
    canvas = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    height, width = canvas.shape[:2]
    scale = max(0.32, min(height, width) / 1000)
    plates: list[Plate] = []
    for box, name, colour in zip(boxes.tolist(), names, colours, strict=True):
        (text_width, text_height), baseline = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        plate = _place_plate(box, (text_width + 2, text_height + baseline), (width, height), plates)
        plates.append(plate)
        left, top, right, bottom = plate
        cv2.rectangle(canvas, (left, top), (right, bottom), colour, -1)
        brightness = sum(w * c for w, c in zip((0.299, 0.587, 0.114), colour, strict=True))
        ink = (0, 0, 0) if brightness > 140 else (255, 255, 255)
        origin = (left + 1, bottom - baseline // 2 - 1)
        cv2.putText(canvas, name, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)
    return torch.from_numpy(canvas).permute(2, 0, 1)


def _place_plate(
    box: Sequence[float], size: tuple[int, int], image: tuple[int, int], taken: Sequence[Plate]
) -> Plate:
    """Return the first free place for a plate: above its box, below the box's upper edge, above its lower edge, or
    below the box; above it if none is free. `size` and `image` are (width, height)."""
    plate_width, plate_height = size
    left = int(max(0, min(box[0], image[0] - plate_width)))
    tops = (box[1] - plate_height, box[1], box[3] - plate_height, box[3])
    places = []
    for top in (int(max(0, min(top, image[1] - plate_height))) for top in tops):
        places.append((left, top, left + plate_width, top + plate_height))
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _overlap(a: Plate, b: Plate) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
