"""Photos of a folder: broken ones passed over, every fourth held back."""

from pathlib import Path

import pytest
import torch
from detectors import frames

from norton_det.data.images import write_png
from norton_det.shrink.photos import LEAST, read_photos


@pytest.fixture
def folder(tmp_path):
    for number, image in enumerate(frames(16, 12, 14)):
        write_png(tmp_path / f"{number:02}.png", (255 * image).to(torch.uint8))
    return tmp_path


def test_every_fourth_photo_is_held_back_and_fitted_on_by_nothing(folder):
    photos = read_photos(folder, 100)
    assert [path.stem for path in photos.held.paths] == ["03", "07", "11", "15"]
    assert len(photos.fitted) == 12
    assert not set(photos.held.paths) & set(photos.fitted.paths)


def test_a_broken_photo_is_named_and_passed_over(folder, caplog):
    Path(folder / "05.png").write_bytes(b"no picture")
    photos = read_photos(folder, 100)
    assert len(photos.held) + len(photos.fitted) == 15
    assert "05.png" in caplog.text


def test_a_photo_that_is_too_slim_is_passed_over(folder, caplog):
    write_png(folder / "slim.png", torch.zeros(3, 1, 200, dtype=torch.uint8))
    assert len(read_photos(folder, 100).held.paths) == 4
    assert "slim.png" in caplog.text


def test_too_few_photos_are_one_line(folder):
    with pytest.raises(ValueError, match=f"{LEAST - 1} photos that can be read, expected at least {LEAST}"):
        read_photos(folder, LEAST - 1)
