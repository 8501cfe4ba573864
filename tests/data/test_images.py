"""Every kind of image file gives the right picture, or one line that names it."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from norton_det.data.images import SLIMMEST, ImageFiles, find_images, read_header, read_image, read_photo

RAMP = np.linspace(0, 255, 48, dtype=np.uint8).reshape(6, 8)


def colour_picture():
    return Image.fromarray(np.stack([RAMP, RAMP[::-1], np.full_like(RAMP, 90)], axis=2))


def test_grey_palette_cmyk_and_transparent_images_are_rgb(tmp_path):
    picture = colour_picture()
    for mode, suffix, tolerance in (("L", "png", 0), ("P", "png", 40), ("CMYK", "tif", 0), ("RGBA", "png", 0)):
        path = tmp_path / f"{mode}.{suffix}"
        picture.convert(mode).save(path)
        expected = torch.from_numpy(np.array(picture.convert("L").convert("RGB") if mode == "L" else picture))
        found = read_image(path)
        assert found.shape == (3, 6, 8) and found.dtype == torch.uint8
        assert (found.permute(1, 2, 0).int() - expected.int()).abs().max() <= tolerance, mode


def test_16_bits_keep_their_range(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(path)
    assert torch.equal(read_image(path), torch.from_numpy(RAMP).expand(3, 6, 8))


def test_16_bits_of_colour_and_transparency_keep_their_range(tmp_path):
    ramp = np.stack([RAMP, RAMP[::-1], np.full_like(RAMP, 90)], axis=2)
    deep = ramp[..., ::-1].astype(np.uint16) * 257
    for name, pixels in (("rgb", deep), ("rgba", np.dstack([deep, np.full_like(deep[..., 0], 30000)]))):
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), pixels)
        assert torch.equal(read_image(path).permute(1, 2, 0), torch.from_numpy(ramp)), name


def test_a_transparent_palette_keeps_its_colours(tmp_path):
    path = tmp_path / "palette.png"
    picture = colour_picture().quantize(8)
    picture.save(path, transparency=3)
    assert torch.equal(read_image(path).permute(1, 2, 0), torch.from_numpy(np.array(picture.convert("RGB"))))


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp"])
def test_of_several_pictures_in_a_file_the_first_is_read(suffix, tmp_path):
    path = tmp_path / f"several.{suffix}"
    first, second = (Image.new("RGB", (8, 6), colour) for colour in ((200, 30, 30), (30, 30, 200)))
    first.save(path, save_all=True, append_images=[second])
    red, _, blue = read_image(path)[:, 3, 4].tolist()
    assert red > 180 and blue < 50


UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x.flip(2),
    3: lambda x: x.rot90(2, (1, 2)),
    4: lambda x: x.flip(1),
    5: lambda x: x.transpose(1, 2),
    6: lambda x: x.rot90(-1, (1, 2)),
    7: lambda x: x.rot90(2, (1, 2)).transpose(1, 2),
    8: lambda x: x.rot90(1, (1, 2)),
}
"""What the EXIF standard says to do with the pixels for each orientation."""


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_photo_stands_upright_for_data_and_demos_alike(orientation, tmp_path):
    path = tmp_path / "turned.png"
    picture = colour_picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)
    raw = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(read_image(path), UPRIGHT[orientation](raw))
    upright, scale = read_photo(path, 100)
    assert torch.equal(upright, UPRIGHT[orientation](raw))
    assert scale == 1
    header = read_header(path)
    assert header.upright == tuple(upright.shape[1:]) and header.is_turned == (orientation != 1)
    assert header.size == tuple(raw.shape[1:])


@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00", b"nothing of the kind", b""]
)
def test_broken_exif_data_turn_nothing(exif, tmp_path):
    picture = colour_picture()
    picture.save(tmp_path / "odd.jpg", exif=exif, quality=95)
    picture.save(tmp_path / "plain.jpg", quality=95)
    assert torch.equal(read_image(tmp_path / "odd.jpg"), read_image(tmp_path / "plain.jpg"))
    assert not read_header(tmp_path / "odd.jpg").is_turned


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_large_photo_is_made_smaller_and_tells_by_how_much(suffix, tmp_path):
    path = tmp_path / f"large.{suffix}"
    Image.new("RGB", (900, 600), (10, 200, 30)).save(path)
    photo, scale = read_photo(path, 300)
    assert photo.shape == (3, 200, 300)
    assert scale == 3
    assert (photo[:, 100, 100].int() - torch.tensor([10, 200, 30])).abs().max() < 4


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image")
    picture = colour_picture().resize((64, 64))
    picture.save(tmp_path / "cut.jpg")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "phone.heic").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(400))
    Image.fromarray(RAMP.astype(np.float32) / 255).save(tmp_path / "float.tif")
    Image.fromarray(RAMP.astype(np.int32) * 257).save(tmp_path / "int.tif")
    for name in ("empty.jpg", "text.png", "cut.jpg", "phone.heic", "float.tif", "int.tif", "gone.jpg"):
        for read in (read_image, lambda path: read_photo(path, 100)):
            with pytest.raises((ValueError, FileNotFoundError), match=name):
                read(tmp_path / name)


def test_a_photo_that_a_resize_would_leave_nothing_of_is_refused(tmp_path):
    Image.new("L", (SLIMMEST, 1)).save(tmp_path / "slim.png")
    assert read_photo(tmp_path / "slim.png", 100)[0].shape == (3, 1, SLIMMEST)
    Image.new("L", (1, SLIMMEST + 1)).save(tmp_path / "slimmer.png")
    with pytest.raises(ValueError, match=r"slimmer\.png.*1x65 pixels"):
        read_photo(tmp_path / "slimmer.png", 100)


def test_a_decompression_bomb_is_refused_with_its_size(tmp_path):
    """A few hundred bytes that say they are 40,000 x 30,000 pixels: a small image's file with another header."""
    Image.new("L", (40, 30)).save(tmp_path / "small.png")
    content = bytearray((tmp_path / "small.png").read_bytes())
    content[16:24] = struct.pack(">II", 40_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path = tmp_path / "bomb.png"
    path.write_bytes(content)
    for read in (read_image, lambda path: read_photo(path, 100)):
        with pytest.raises(ValueError, match=r"bomb\.png: not a readable image .*1200000000 pixels"):
            read(path)


def test_images_to_compute_with_are_shares_of_white(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path, grey in zip(paths, (255, 51), strict=True):
        Image.new("L", (4, 3), grey).save(path)
    white, dark = ImageFiles(paths)
    assert torch.equal(white, torch.ones(3, 3, 4))
    torch.testing.assert_close(dark, torch.full((3, 3, 4), 0.2))
    assert len(ImageFiles(paths)[1:]) == 1 and torch.equal(ImageFiles(paths)[1:][0], dark)


def test_images_of_a_folder_come_by_name(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", "._a.JPG", ".hidden.png"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path)] == ["a.JPG", "b.png"]
    assert [path.name for path in find_images(tmp_path, 1)] == ["a.JPG"]
    with pytest.raises(ValueError, match="gone: not a folder, expected one with images"):
        find_images(tmp_path / "gone")


def test_images_in_subfolders_are_not_looked_for_and_the_message_says_so(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below/a.jpg").touch()
    with pytest.raises(ValueError, match=r"no images .* in this folder; subfolders are not looked into"):
        find_images(tmp_path)


def test_a_few_of_many_images_come_from_all_over_the_folder(tmp_path):
    for number in range(10):
        (tmp_path / f"frame{number}.jpg").touch()
    chosen = {count: [int(path.stem[5:]) for path in find_images(tmp_path, count)] for count in (0, 1, 3, 9, 10, 20)}
    assert chosen == {
        0: [], 1: [0], 3: [0, 3, 6], 9: [0, 1, 2, 3, 4, 5, 6, 7, 8], 10: [*range(10)], 20: [*range(10)]
    }  # fmt: skip
