import numpy as np
import pytest
import torch
from PIL import Image

from norton_det.visualization.heat_grid import HeatRow, save_heat_grid

GREY = torch.full((3, 60, 80), 128, dtype=torch.uint8)
WHOLE = (0.0, 0.0, 80.0, 60.0)


def hot(row, column):
    cam = torch.zeros(7, 7)
    cam[row, column] = 5.0
    return cam


def draw(tmp_path, rows, titles=("dense",)):
    save_heat_grid(tmp_path / "grid.png", titles, rows)
    return np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)


def reds(pixels):
    """Where it is hot, (rows, columns)."""
    return np.nonzero((pixels[..., 0] > 100) & (pixels[..., 1] < 80) & (pixels[..., 2] < 80))


def panels(pixels):
    """First and last column of each grey panel in the middle of a one-row grid."""
    grey = np.abs(pixels - 128).max(axis=2) < 3
    inside = np.flatnonzero(np.diff(np.pad(grey.sum(axis=0) > 50, 1).astype(int)))
    return inside.reshape(-1, 2)


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (4, 3)])
def test_a_row_an_image_a_column_a_model(columns, rows, tmp_path):
    row = HeatRow("dog 90%", GREY, WHOLE, [torch.zeros(7, 7)] * columns, ["same"] * columns)
    pixels = draw(tmp_path, [row] * rows, ["plan"] * columns)
    found = panels(pixels)
    assert len(found) == columns + 1
    assert np.ptp(found[:, 1] - found[:, 0]) <= 1
    middle = pixels[:, found[0].mean().astype(int)]
    starts = np.diff((np.abs(middle - 128).max(axis=1) < 3).astype(int)) == 1
    assert starts.sum() == rows


@pytest.mark.parametrize(("place", "x", "y"), [((0, 0), 1, 1), ((0, 6), 13, 1), ((6, 3), 7, 13)])
def test_the_heat_lies_where_the_map_says(place, x, y, tmp_path):
    """The middle of the hottest of 7 x 7 cells is at x and y fourteenths of the panel."""
    pixels = draw(tmp_path, [HeatRow("dog", GREY, WHOLE, [hot(*place)], [""])])
    left, right = panels(draw(tmp_path, [HeatRow("dog", GREY, WHOLE, [torch.zeros(7, 7)], [""])]))[1]
    rows, columns = reds(pixels)
    width, height = right - left, (right - left) * 60 / 80
    assert len(rows)
    assert (columns.mean() - left) / width == pytest.approx(x / 14, abs=0.06)
    top = np.flatnonzero(np.abs(pixels[:, left - width // 2] - 128).max(axis=1) < 3)[0]
    assert (rows.mean() - top) / height == pytest.approx(y / 14, abs=0.06)


def test_a_small_area_is_outlined_and_enlarged(tmp_path):
    small = (60.0, 40.0, 70.0, 50.0)
    whole, part = (draw(tmp_path, [HeatRow("dog", GREY, area, [torch.ones(7, 7)], [""])]) for area in (WHOLE, small))
    first, second = panels(whole)[0], reds(part)
    width = first[1] - first[0]
    assert second[1].min() > first[1]  # the picture itself is left as it is
    # 10 of 80 pixels wide, 10 of 60 high: the window is a third of the picture, the area 3/8 of the window.
    assert np.ptp(second[1]) / width == pytest.approx(3 / 8, abs=0.05)
    assert np.ptp(second[0]) / (width * 60 / 80) == pytest.approx(1 / 2, abs=0.05)


def test_a_map_of_zeros_leaves_the_picture(tmp_path):
    pixels = draw(tmp_path, [HeatRow("dog", GREY, WHOLE, [torch.zeros(7, 7)], [""])])
    assert not len(reds(pixels)[0])
    assert list(tmp_path.iterdir()) == [tmp_path / "grid.png"]
