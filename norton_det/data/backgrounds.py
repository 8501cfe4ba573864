"""Draws the background behind the figures of a drawn scene, and the light on the scene."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from norton_det import opencv as cv2
from norton_det.data.polygons import Colour, colour_from_hsv, ellipse

Plane = npt.NDArray[np.float32]


def background(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Draw a background, RGB (height, width, 3): a gradient, a texture, and muted patches that are no objects."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    angle = rng.uniform(0, 2 * math.pi)
    across, down = math.cos(angle), math.sin(angle)
    ramp = 0.5 + (across * (x / width - 0.5) + down * (y / height - 0.5)) / math.sqrt(2)
    first, second = _muted_colour(rng), _muted_colour(rng)
    texture = rng.uniform(6, 20) * TEXTURES[rng.integers(len(TEXTURES))](rng, x, y)
    channels = [start + (end - start) * ramp + texture for start, end in zip(first, second, strict=True)]
    image = np.ascontiguousarray(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8))
    for _ in range(rng.integers(0, 5)):
        centre, radii = rng.uniform(0, (width, height)), rng.uniform(4, 30, 2)
        patch = ellipse((centre[0], centre[1]), (radii[0], radii[1]))[:: rng.integers(1, 8)]
        cv2.fillPoly(image, [np.round(patch).astype(np.int32)], _muted_colour(rng), cv2.LINE_AA)
    return image


def lit(rng: np.random.Generator, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the image brighter or darker, warmer or cooler, lit from one side, with a little sensor noise."""
    height, width = image.shape[:2]
    tint = (rng.uniform(0.75, 1.1) * rng.uniform(0.94, 1.06, 3)).astype(np.float32)
    slope = rng.uniform(-0.12, 0.12)
    from_side = np.linspace(1 - slope, 1 + slope, width).astype(np.float32)
    noise = rng.standard_normal((height, width, 3), dtype=np.float32) * np.float32(rng.uniform(1, 5))
    result: npt.NDArray[np.uint8] = np.clip(image * (tint * from_side[:, None]) + noise, 0, 255).astype(np.uint8)
    return result


def _muted_colour(rng: np.random.Generator) -> Colour:
    return colour_from_hsv(rng.uniform(), rng.uniform(0.05, 0.32), rng.uniform(0.55, 0.95))


def _stripes(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    angle, period = rng.uniform(0, math.pi), rng.uniform(10, 40)
    phase = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period)
    return np.asarray(np.sin(phase), np.float32)


def _checker(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    side = rng.uniform(10, 32)
    return np.where((x // side + y // side) % 2 == 0, 1.0, -1.0).astype(np.float32)


def _blobs(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    cells = int(rng.integers(5, 20))
    coarse = rng.uniform(-1.5, 1.5, (cells, cells))
    height, width = x.shape
    blobs: Plane = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    return blobs


def _plain(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    return np.zeros_like(x)


TEXTURES: tuple[Callable[[np.random.Generator, Plane, Plane], Plane], ...] = (
    _stripes,
    _checker,
    _blobs,
    _plain,
)
