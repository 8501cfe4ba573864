"""Frames are taken ahead in order, live ones dropped when stale; what is written can be played, whatever happened."""

import itertools
import threading
import time

import cv2
import numpy as np
import pytest
import torch

from norton_det.data.clip import drawn_clip
from norton_det.visualization.video import AHEAD, VideoSource, Window, ahead, open_screen


def plain_frame(red, green, blue, size=(64, 96)):
    return torch.tensor([red, green, blue], dtype=torch.uint8)[:, None, None].expand(3, *size)


def test_all_items_come_in_order():
    assert list(ahead(range(100))) == list(range(100))


def test_a_slow_reader_is_not_waited_for_and_memory_is_bounded():
    taken = []
    items = ahead(taken.append(number) or number for number in itertools.count())
    assert next(items) == 0
    time.sleep(0.3)
    assert len(taken) == 1 + AHEAD + 1  # given out, waiting, and in the thread's hand
    items.close()


def test_of_live_items_the_stale_ones_are_dropped():
    def live():
        for number in range(20):
            time.sleep(0.01)
            yield number

    seen = []
    for number in ahead(live(), newest_only=True):
        seen.append(number)
        time.sleep(0.05)
    assert seen[-1] == 19
    assert 2 <= len(seen) < 15
    assert seen == sorted(seen)


@pytest.mark.parametrize("newest_only", [False, True])
def test_an_error_in_the_thread_reaches_the_reader(newest_only):
    def broken():
        yield 1
        raise ValueError("frame 2 is damaged")

    items = ahead(broken(), newest_only)
    with pytest.raises(ValueError, match="frame 2"):
        list(items)


def test_a_reader_that_leaves_ends_the_thread():
    before = threading.active_count()
    items = ahead(itertools.count())
    next(items)
    items.close()
    assert threading.active_count() == before


def test_what_is_written_is_read_back_in_its_colours(tmp_path):
    path = tmp_path / "new" / "video.mp4"
    frames = [plain_frame(250, 20, 20), plain_frame(20, 20, 250)]
    with open_screen(path, 10.0) as screen:
        assert all(screen.show(frame) for frame in frames)
    source = VideoSource(path)
    assert (source.frame_rate, source.is_live) == (10.0, False)
    for found, expected in zip(source, frames, strict=True):
        assert (found.float() - expected).abs().mean() < 12
    assert [file.name for file in path.parent.iterdir()] == ["video.mp4"]


def test_a_video_that_was_interrupted_can_be_played(tmp_path):
    path = tmp_path / "video.mp4"
    with pytest.raises(KeyboardInterrupt), open_screen(path, 10.0) as screen:
        screen.show(plain_frame(1, 2, 3))
        raise KeyboardInterrupt
    assert len(list(VideoSource(path))) == 1


def test_a_damaged_video_is_named(tmp_path):
    path = tmp_path / "damaged.mp4"
    path.write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(500))
    with pytest.raises(ValueError, match=r"damaged\.mp4"):
        list(VideoSource(path))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("empty.mp4", "text.mp4"):
        with pytest.raises(ValueError, match=name):
            list(VideoSource(tmp_path / name))


def write_clip(path, codec, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, (96, 64))
    for frame in drawn_clip(frames, (64, 96)):
        writer.write(frame.permute(1, 2, 0).contiguous().numpy())
    writer.release()


def test_a_video_cut_in_half_gives_the_frames_that_are_there_and_tells(tmp_path, caplog):
    path = tmp_path / "video.avi"
    write_clip(path, "MJPG", 20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = len(list(VideoSource(path)))
    assert 0 < found < 20
    assert f"video.avi: damaged, {found} of about 20 frames" in caplog.text


def test_after_a_damaged_frame_the_others_are_read(tmp_path, caplog):
    path = tmp_path / "video.mp4"
    write_clip(path, "mp4v", 40)
    data = bytearray(path.read_bytes())
    sizes = data.index(b"stsz") + 16  # an entry of four bytes a frame, behind version, common size and count
    lengths = np.frombuffer(data, ">u4", 40, sizes)
    damaged = data.index(b"mdat") + 4 + int(lengths[:20].sum())
    data[damaged : damaged + int(lengths[20])] = bytes(int(lengths[20]))
    path.write_bytes(data)
    assert len(list(VideoSource(path))) == 39
    assert not caplog.text


def test_a_codec_that_is_not_there_is_told(tmp_path):
    path = tmp_path / "foreign.mp4"
    write_clip(path, "mp4v", 3)
    data = bytearray(path.read_bytes().replace(b"mp4v", b"xyz9"))
    data[data.index(b"\x04\x80\x80\x80", data.index(b"esds")) + 5] = 0xD0  # the kind of stream: nobody's
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"foreign\.mp4: no frame could be read"):
        list(VideoSource(path))


def test_a_camera_that_is_not_there_is_told():
    with pytest.raises(ValueError, match="camera 99: not there"):
        VideoSource(99)


def test_what_cannot_be_written_is_told(tmp_path):
    with pytest.raises(ValueError, match="a folder"), open_screen(tmp_path, 10.0):
        pass
    path = tmp_path / "video.mp4"
    with pytest.raises(ValueError, match=r"video\.mp4: could not be written"), open_screen(path, 10.0) as screen:
        screen.show(plain_frame(1, 2, 3))
        for unfinished in tmp_path.iterdir():
            unfinished.unlink()
    assert not path.exists()


@pytest.mark.parametrize(
    ("key", "visible", "goes_on"),
    [(-1, 1, True), (ord("x"), 1, True), (ord("q"), 1, False), (27, 1, False), (-1, 0, False)],
)
def test_a_window_is_left_by_its_keys_and_by_closing_it(key, visible, goes_on, monkeypatch):
    shown, sizes = [], []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "resizeWindow", lambda _, *size: sizes.append(size))
    for name in ("namedWindow", "destroyWindow"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda _: key)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: visible)
    with open_screen(None, 10.0) as screen:
        assert screen.show(plain_frame(250, 20, 30)) is goes_on
    assert shown[0][0, 0].tolist() == [30, 20, 250]
    assert sizes == [(96, 64)]


def test_without_a_display_a_file_is_asked_for(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(ValueError, match="--output"):
        Window("any")


@pytest.mark.parametrize(
    ("keys", "visible", "goes_on"), [([-1, -1, 32], [1] * 9, True), ([-1] * 9, [1, 1, 0, 0], False)]
)
def test_a_picture_stands_until_a_key_or_until_its_window_is_closed(keys, visible, goes_on, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")
    for name in ("namedWindow", "resizeWindow", "imshow"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    pressed, seen = iter(keys), iter(visible)
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(pressed))
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: next(seen))
    assert Window("any").show(plain_frame(1, 2, 3), until_key=True) is goes_on


def test_the_drawn_clip_moves_and_is_the_same_twice():
    first, again = (list(drawn_clip(3, (64, 96))) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert first[0].shape == (3, 64, 96)


def test_the_drawn_clip_fills_its_frame():
    first, *_, last = drawn_clip(9, (40, 400))
    rows, columns = (first != last).any(dim=0).nonzero().unbind(1)
    assert columns.max() - columns.min() > 200
    assert rows.max() > 20
