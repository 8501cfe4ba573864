"""Makes the flat polygons of which figures are drawn: their outlines, colours and pixels."""

import colorsys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from norton_det import opencv as cv2

Points = npt.NDArray[np.float64]
Colour = tuple[int, int, int]
SUBPIXEL_BITS = 4
LEAST_RIMMED_SIDE = 5  # pixels
ARC = np.linspace(0, 1, 24)  # places of an ellipse's corners, as shares of its span


@dataclass(frozen=True)
class Polygon:
    """Holds a filled polygon: corners (N, 2) as x, y in pixels, with pixel centres at whole numbers; RGB colour."""

    outline: Points
    colour: Colour


@dataclass(frozen=True)
class Figure:
    """Holds a figure's polygons from back to front, and for a person the keypoints (17, 2) in COCO's order."""

    parts: tuple[Polygon, ...]
    keypoints: Points | None = None

    def placed(self, matrix: Points, offset: Points) -> "Figure":
        """Return the figure moved by ``p -> matrix @ p + offset``; matrix (2, 2), offset (2,)."""
        parts = tuple(Polygon(part.outline @ matrix.T + offset, part.colour) for part in self.parts)
        return Figure(parts, None if self.keypoints is None else self.keypoints @ matrix.T + offset)

    def box(self) -> tuple[Points, Points]:
        """Return the smallest and the largest x, y over all parts."""
        corners = np.concatenate([part.outline for part in self.parts])
        return corners.min(axis=0), corners.max(axis=0)

    def silhouette(self, height: int, width: int) -> npt.NDArray[np.bool_]:
        """Return the mask (height, width) of the pixels that the figure covers, whatever stands in front of it."""
        mask = np.zeros((height, width), np.uint8)
        for part in self.parts:
            cv2.fillPoly(mask, [_fixed_point(part.outline)], 1, shift=SUBPIXEL_BITS)
        return mask.astype(np.bool_)

    def paint(self, image: npt.NDArray[np.uint8]) -> None:
        """Paint the figure over an RGB image (H, W, 3); parts that are not tiny get a thin darker rim."""
        for part in self.parts:
            corners = [_fixed_point(part.outline)]
            cv2.fillPoly(image, corners, part.colour, cv2.LINE_AA, SUBPIXEL_BITS)
            if np.ptp(part.outline, axis=0).min() > LEAST_RIMMED_SIDE:
                rim = shade(part.colour, 0.62)
                cv2.polylines(image, corners, True, rim, 1, cv2.LINE_AA, SUBPIXEL_BITS)


def _fixed_point(outline: Points) -> npt.NDArray[np.int32]:
    corners: npt.NDArray[np.int32] = np.round(outline * 2**SUBPIXEL_BITS).astype(np.int32)
    return corners


def colour_from_hsv(hue: float, saturation: float, value: float) -> Colour:
    """Return the RGB colour, 0 to 255, of hue, saturation and value, 0 to 1."""
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def vivid_colour(rng: np.random.Generator) -> Colour:
    """Draw a clear colour of any hue; every kind of figure draws from the same ones."""
    return colour_from_hsv(rng.uniform(), rng.uniform(0.5, 0.85), rng.uniform(0.5, 0.95))


def shade(colour: Colour, factor: float) -> Colour:
    """Return the colour made darker (factor below 1) or lighter."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def ellipse(centre: tuple[float, float], radii: tuple[float, float], span: tuple[float, float] = (0, 360)) -> Points:
    """Return the outline of an ellipse, or of its segment between two angles in degrees, clockwise from the right."""
    start, end = np.radians(span)
    angles = start + (end - start) * ARC
    corners = np.empty((len(ARC), 2))
    corners[:, 0] = centre[0] + radii[0] * np.cos(angles)
    corners[:, 1] = centre[1] + radii[1] * np.sin(angles)
    return corners


def limb(start: Points, end: Points, width: float) -> Points:
    """Return the outline of a bar with round ends from start (2,) to end (2,)."""
    direction = np.degrees(np.arctan2(end[1] - start[1], end[0] - start[0]))
    radii = (width / 2, width / 2)
    far = ellipse((end[0], end[1]), radii, (direction - 90, direction + 90))
    near = ellipse((start[0], start[1]), radii, (direction + 90, direction + 270))
    return np.concatenate([far, near])


def polygon(*corners: tuple[float, float]) -> Points:
    """Return the outline (N, 2) of corners x, y."""
    return np.array(corners, dtype=np.float64)


def rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    """Return the outline of an upright rectangle."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def hanging(start: Points, length: float, degrees: float) -> Points:
    """Return the end of a bone that hangs down from start, swung by some degrees towards positive x."""
    return start + length * np.array([np.sin(np.radians(degrees)), np.cos(np.radians(degrees))])
