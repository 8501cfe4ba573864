"""Frames are taken ahead in order, live ones dropped when stale; what is written can be played, whatever happened."""

import itertools
import struct
import threading
import time
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from norton_det.data.clip import drawn_clip
from norton_det.visualization.sources import Camera, Video
from norton_det.visualization.video import AHEAD, ahead, open_screen
from norton_det.visualization.window import Window


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
    source = Video(path)
    assert (source.frame_rate, source.is_live) == (10.0, False)
    for found, expected in zip(source, frames, strict=True):
        assert (found.float() - expected).abs().mean() < 12
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")  # plays before all of it is there
    with av.open(path) as written:  # what every browser plays
        assert (written.streams.video[0].codec.name, written.streams.video[0].pix_fmt) == ("h264", "yuv420p")
    assert [file.name for file in path.parent.iterdir()] == ["video.mp4"]


def test_a_video_that_was_interrupted_can_be_played(tmp_path):
    path = tmp_path / "video.mp4"
    with pytest.raises(KeyboardInterrupt), open_screen(path, 10.0) as screen:
        screen.show(plain_frame(1, 2, 3))
        raise KeyboardInterrupt
    assert len(list(Video(path))) == 1


def test_a_damaged_video_is_named(tmp_path):
    path = tmp_path / "damaged.mp4"
    path.write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(500))
    with pytest.raises(ValueError, match=r"damaged\.mp4"):
        list(Video(path))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("empty.mp4", "text.mp4"):
        with pytest.raises(ValueError, match=name):
            list(Video(tmp_path / name))


def write_clip(path, codec, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, (96, 64))
    for frame in drawn_clip(frames, (64, 96)):
        writer.write(frame.permute(1, 2, 0).contiguous().numpy())
    writer.release()


def test_a_video_cut_in_half_gives_the_frames_that_are_there_and_tells(tmp_path, caplog):
    path = tmp_path / "video.avi"
    write_clip(path, "MJPG", 20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = len(list(Video(path)))
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
    assert len(list(Video(path))) == 39
    assert not caplog.text


@pytest.mark.parametrize(
    ("quarter_turns", "matrix"),
    [(1, (0, -1, 1, 0)), (2, (-1, 0, 0, -1)), (3, (0, 1, -1, 0))],  # counterclockwise, as ISO 14496-12 writes them
)
def test_a_phones_video_is_upright(quarter_turns, matrix, tmp_path):
    upright = tmp_path / "upright.mp4"
    with open_screen(upright, 10.0) as screen:
        screen.show(next(drawn_clip(1, (64, 96))))
    data = bytearray(upright.read_bytes())
    (a, b, c, d), place = matrix, data.index(b"tkhd") + 4 + 40  # of the track's matrix
    data[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    [expected], [found] = Video(upright), Video(tmp_path / "turned.mp4")
    assert torch.equal(found, expected.rot90(quarter_turns, (1, 2)))


def test_a_file_without_pictures_is_told(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode()])
    with pytest.raises(ValueError, match=r"sound\.mp4: no video: it has no pictures"):
        Video(path)


@contextmanager
def served(body, pause=0.0):
    """The address of a server whose /live shows JPEGs one after the other, and all else is `body` as an MP4."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_GET(self):
            is_live = self.path == "/live"
            self.send_response(404 if self.path == "/gone" else 200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=x" if is_live else "video/mp4")
            if not is_live:
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self.end_headers()
            for number in range(1, 21):
                jpeg = cv2.imencode(".jpg", np.full((64, 96, 3), 10 * number, np.uint8))[1].tobytes()
                self.wfile.write(b"--x\r\nContent-Type: image/jpeg\r\n")
                self.wfile.write(b"Content-Length: %d\r\n\r\n%b\r\n" % (len(jpeg), jpeg))
                time.sleep(pause)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_address_is_read_whole_where_it_has_an_end_and_at_its_newest_where_it_has_none(tmp_path):
    with open_screen(tmp_path / "video.mp4", 10.0) as screen:
        for frame in drawn_clip(5, (64, 96)):
            screen.show(frame)
    with served((tmp_path / "video.mp4").read_bytes(), pause=0.01) as address:
        file, live = Video(f"{address}/video.mp4"), Video(f"{address}/live")
        assert (len(list(file)), file.is_live, live.is_live) == (5, False, True)
        seen = []
        for frame in ahead(live, newest_only=True):
            seen.append(round(frame.float().mean().item()))
            time.sleep(0.05)
        assert 2 <= len(seen) < 15 and seen == sorted(seen) and seen[-1] >= 180
        with pytest.raises(ValueError, match=r"http://127.*/gone: not a video that can be read .*404") as told:
            Video(f"{address}/gone".replace("//", "//me:secret@"))
        assert "secret" not in str(told.value)


def test_live_frames_are_shown_when_they_came(tmp_path):
    path = tmp_path / "live.mp4"
    with open_screen(path, 30.0, is_live=True) as screen:
        for frame in drawn_clip(3, (64, 96)):
            screen.show(frame)
            time.sleep(0.2)
    with av.open(path) as written:
        first, _, last = (frame.time for frame in written.decode(video=0))
    assert last - first >= 0.4


def test_a_frame_of_odd_sides_is_cut_to_even_ones_and_a_colon_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("12:30.mp4")
    with open_screen(path, Fraction(30000, 1001)) as screen:
        screen.show(plain_frame(200, 20, 20, (63, 95)))
    [found] = Video(path)
    assert found.shape == (3, 62, 94)


def test_a_codec_that_is_not_there_is_told(tmp_path):
    path = tmp_path / "foreign.mp4"
    write_clip(path, "mp4v", 3)
    data = bytearray(path.read_bytes().replace(b"mp4v", b"xyz9"))
    data[data.index(b"\x04\x80\x80\x80", data.index(b"esds")) + 5] = 0xD0  # the kind of stream: nobody's
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"foreign\.mp4: no frame could be read"):
        list(Video(path))


def test_a_camera_that_is_not_there_is_told():
    with pytest.raises(ValueError, match="camera 99: not there"):
        Camera(99)


def test_what_cannot_be_written_is_told(tmp_path):
    with pytest.raises(ValueError, match="a folder"), open_screen(tmp_path, 10.0):
        pass
    path = tmp_path / "video.mp4"
    (tmp_path / ".video.unfinished.mp4").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as told, open_screen(path, 10.0) as screen:
        screen.show(plain_frame(1, 2, 3))
    assert told.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


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
