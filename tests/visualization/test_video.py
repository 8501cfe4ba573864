"""Frames are taken ahead in order, live ones dropped when stale; what is written can be played, whatever happened."""

import itertools
import threading
import time

import cv2
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
    time.sleep(0.5)
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
    with pytest.raises(ValueError, match=r"empty\.mp4"):
        list(VideoSource(tmp_path / "empty.mp4"))


def test_a_video_cut_in_half_gives_the_frames_that_are_there_or_is_named(tmp_path):
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for frame in drawn_clip(20, (64, 96)):
        writer.write(frame.permute(1, 2, 0).contiguous().numpy())
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 0 < len(list(VideoSource(path))) < 20


def test_without_a_display_a_file_is_asked_for(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(ValueError, match="--output"):
        Window("any")


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
