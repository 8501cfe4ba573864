"""Draws the input that stands in for a missing image or video: a scene, or a short clip of its figures."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from norton_det.data.backgrounds import background, lit
from norton_det.data.figures import ball, car, fish, kite, person
from norton_det.data.shapes import draw_scene

CAST = (person, person, car, fish, kite, ball)
LEAST_SIZE, MOST_SIZE = 0.25, 0.5
"""Sizes of a figure, in shares of the frame's height."""
SLOWEST, FASTEST = 0.005, 0.015
"""Shares of the frame's side that a figure moves from frame to frame."""
FRAME_RATE = 25.0


def drawn_clip(frames: int = 150, size: tuple[int, int] = (384, 512), seed: int = 0) -> Iterator[Tensor]:
    """Yield frames, uint8 RGB (3, H, W), of figures that cross each other and turn back at the edges.

    Examples:
        >>> [frame.shape for frame in drawn_clip(2, (48, 64))]
        [torch.Size([3, 48, 64]), torch.Size([3, 48, 64])]
    """
    rng = np.random.default_rng(seed)
    height, width = size
    stage = lit(rng, background(rng, height, width))
    figures = [make(rng) for make in CAST]
    scales = rng.uniform(LEAST_SIZE, MOST_SIZE, len(CAST)) * height
    starts = rng.uniform(0, 2, (len(CAST), 2))
    steps = rng.uniform(SLOWEST, FASTEST, (len(CAST), 2)) * rng.choice([-1, 1], (len(CAST), 2))
    for time in range(frames):
        image = stage.copy()
        for figure, scale, start, step in zip(figures, scales, starts, steps, strict=True):
            place = np.abs((start + time * step) % 2 - 1)  # there and back again, in 0 to 1
            figure.placed(scale * np.eye(2), place * (width, height)).paint(image)
        yield torch.from_numpy(image).permute(2, 0, 1)


def drawn_picture(height: int, width: int) -> Tensor:
    """Draw a scene of the wanted size, float32 RGB (3, height, width) in 0 to 1."""
    scene = torch.from_numpy(draw_scene(np.random.default_rng(0)).image).permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.interpolate(scene, (height, width), mode="bilinear", antialias=True)[0]
