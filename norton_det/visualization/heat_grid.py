"""Draws a grid of heat maps on images, with a row for each image and a column for each model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from norton_det.analysis.explanations import Explanation, format_similarity
from norton_det.analysis.gradcam import Subject
from norton_det.analysis.places import Box
from norton_det.visualization.plots import save_figure

_PANEL = 2.1
"""Width of a panel in inches."""
_LABEL = 1.3
"""Width of the rows' names in inches."""
_OPACITY = 0.65
"""Opacity of the hottest place."""


@dataclass(frozen=True)
class HeatRow:
    """Holds a picture, uint8 RGB (3, H, W); its area that the maps cover, xyxy pixels; and for each column a map
    (h, w), at least 0, and a caption."""

    name: str
    picture: Tensor
    area: Box
    maps: Sequence[Tensor]
    captions: Sequence[str]


def save_heat_grid(path: Path, titles: Sequence[str], rows: Sequence[HeatRow]) -> None:
    """Write a PNG with each row's name and picture, then the picture under each of its maps; columns have titles.

    Each map is scaled by its own maximum: the colours show where, not how much. An area that is small in the picture
    is enlarged under the maps.
    """
    ratios = [row.picture.shape[1] / row.picture.shape[2] for row in rows]
    size = (_LABEL + _PANEL * (1 + len(titles)), 0.6 + sum(_PANEL * ratio + 0.3 for ratio in ratios))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), 1 + len(titles), squeeze=False, height_ratios=ratios)
    for axes, title in zip(grid[0], ("image", *titles), strict=True):
        axes.set_title(title, fontsize=9)
    for panels, row in zip(grid, rows, strict=True):
        for axes in panels:
            axes.imshow(row.picture.permute(1, 2, 0).numpy())
            _outline(axes, row)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel(fill(row.name, 15), rotation=0, ha="right", va="center", fontsize=10, labelpad=8)
        for axes, cam, caption in zip(panels[1:], row.maps, row.captions, strict=True):
            _lay_over(axes, row, cam)
            axes.set_xlabel(caption, fontsize=9)
    save_figure(path, figure)


def explanation_grid(
    subjects: Sequence[Subject], explanations: Sequence[Explanation]
) -> tuple[list[str], list[HeatRow]]:
    """Turn explanations, the dense model's first, into titles and rows, as `save_heat_grid` takes them."""
    dense, *others = explanations
    titles = [f"{dense.name}\n{dense.parameters / 1e6:.2f} M parameters"]
    for model in others:
        mean = format_similarity(model.mean_similarity)
        titles.append(f"{model.name}\n{model.removed(dense):.0%} of parameters removed\nmean similarity {mean}")
    rows = []
    for index, subject in enumerate(subjects):
        maps = [model.maps[index] for model in explanations]
        captions = ["", *(f"similarity {format_similarity(model.similarities[index])}" for model in others)]
        captions = [
            text if cam.any() else f"{text} (no evidence)".lstrip() for text, cam in zip(captions, maps, strict=True)
        ]
        rows.append(HeatRow(subject.title, subject.picture, subject.area, maps, captions))
    return titles, rows


def _lay_over(axes: Axes, row: HeatRow, cam: Tensor) -> None:
    """Lay a map's colours over the area, more opaque where it is hotter."""
    left, top, right, bottom = row.area
    size = (max(1, round(bottom - top)), max(1, round(right - left)))
    enlarged = F.interpolate(cam[None, None], size, mode="bicubic")[0, 0].clamp(min=0)
    heat = (enlarged / enlarged.max().clamp(min=1e-12)).numpy()
    extent = (left - 0.5, right - 0.5, bottom - 0.5, top - 0.5)
    axes.imshow(heat, cmap="jet", vmin=0, vmax=1, alpha=_OPACITY * heat**0.5, extent=extent)
    left, top, right, bottom = _window(row)
    axes.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))


def _window(row: HeatRow) -> Box:
    """Return the window of the picture to show, xyxy pixels.

    It has the picture's aspect ratio, lies around the area, and is as small as it can be with twice the area's sides,
    but never larger than the picture.
    """
    left, top, right, bottom = row.area
    height, width = row.picture.shape[1:]
    share = min(1.0, 2 * max((right - left) / width, (bottom - top) / height))
    x = min(max((left + right - share * width) / 2, 0), width * (1 - share))
    y = min(max((top + bottom - share * height) / 2, 0), height * (1 - share))
    return x, y, x + share * width, y + share * height


def _outline(axes: Axes, row: HeatRow) -> None:
    left, top, right, bottom = row.area
    if (left, top, right, bottom) != (0, 0, *row.picture.shape[:0:-1]):
        box = Rectangle(
            (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="white", linewidth=1
        )
        axes.add_patch(box)
