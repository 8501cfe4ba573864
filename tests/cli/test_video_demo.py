"""The video demo as its user types it, on a drawn clip, with tiny detectors."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time

import cv2
import pytest
import torch
from detectors import tiny_detector

import norton_det
from norton_det.cli import video
from norton_det.cli.main import main
from norton_det.cli.options import find_trained
from norton_det.compression.recover import compress_and_recover
from norton_det.data.clip import drawn_clip
from norton_det.deploy import demo
from norton_det.deploy.demo import DemoDetector, RunOptions
from norton_det.models.settings import write_settings
from norton_det.models.weights import read_weights
from norton_det.visualization import comparison
from norton_det.visualization.sources import Video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """dense.pth, and compressed.pth that was made of it."""
    return made_of(tiny_detector("faster_rcnn", "resnet50"), "norton-77", tmp_path_factory.mktemp("weights"))


def made_of(dense, plan, folder):
    write_settings(dense, {"min_size": (96,), "max_size": 170})
    dense.categories, dense.category_ids = ["__background__", "cat", "dog"], [0, 1, 2]
    norton_det.save(dense, folder / "dense.pth")
    words = ["compress", "--weights", folder / "dense.pth", "--plan", plan, "--output", folder / "small.pth"]
    assert main([str(word) for word in words]) == 0
    return folder


@pytest.fixture
def empty_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def play(*words, frames=3):
    return main([str(word) for word in ("video", "--runtime", "torch", "--max-frames", frames, *words)])


def test_a_drawn_clip_is_shown_with_the_frame_rate(folder, empty_place, capsys):
    assert play("--weights", folder / "small.pth", "--output", "clip.mp4") == 0
    told = capsys.readouterr().out
    assert re.search(r"3 frames, [\d.]+ frames/s from end to end\ncompressed: median [\d.]+ ms, p95 [\d.]+ ms", told)
    frames = list(Video(empty_place / "clip.mp4"))
    assert len(frames) == 3
    assert frames[0].shape[2] == next(drawn_clip(1)).shape[2]


def test_dense_and_compressed_stand_side_by_side(folder, empty_place, capsys):
    assert play("--weights", folder / "small.pth", "--compare", "--output", "clip.mp4") == 0
    told = capsys.readouterr().out
    assert 0 < told.index("dense: median") < told.index("compressed: median")
    assert re.search(r"^speed-up: [\d.]+x$", told, re.MULTILINE)
    assert next(iter(Video(empty_place / "clip.mp4"))).shape[2] == 2 * next(drawn_clip(1)).shape[2]


@pytest.mark.parametrize(("weights", "dense"), [("small.pth", "small.pth"), ("dense.pth", "dense.pth")])
def test_a_wrong_comparison_is_refused_before_anything_is_prepared(weights, dense, folder, empty_place, monkeypatch):
    monkeypatch.setattr(demo, "optimize", lambda *_: pytest.fail("a detector was prepared"))
    frame, treatment = next(drawn_clip(1)), RunOptions(torch.device("cpu"), "torch", None)
    with pytest.raises(ValueError, match="--compare takes a"):
        demo.demo_detectors(folder / weights, str(folder / dense), frame, treatment)


@pytest.mark.parametrize(
    ("kind", "body", "plan"), [("fcos", "resnet18", "[0.2]*12"), ("retinanet_v2", "resnet101", "[0.2]*37")]
)
def test_a_detector_of_another_kind_and_body(kind, body, plan, empty_place, capsys):
    made_of(tiny_detector(kind, body, channels=64), plan, empty_place)
    assert play("--weights", "small.pth", "--compare", "--output", "clip.mp4", frames=2) == 0
    assert "speed-up" in capsys.readouterr().out


def test_an_exported_detector_beside_the_dense_one(empty_place, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    made_of(tiny_detector("fcos", "resnet18", channels=64), "[0.2]*12", empty_place)
    assert main(["export-model", "--weights", "small.pth", "--output", "small.onnx"]) == 0
    words = ["--weights", "small.onnx", "--compare", "dense.pth", "--output", "clip.mp4"]
    assert main(["video", *words, "--max-frames", "2"]) == 0
    told = capsys.readouterr().out
    assert 0 < told.index("dense: median") < told.index("small: median")


@pytest.fixture(scope="module")
def lonely(folder, tmp_path_factory):
    """The compressed detector, whose dense one is gone."""
    path = tmp_path_factory.mktemp("lonely") / "lonely.pth"
    content = torch.load(folder / "small.pth", weights_only=True)
    torch.save({**content, "dense_weights": str(path.with_name("gone.pth"))}, path)
    return path


def test_a_dense_detector_that_is_gone_is_replaced_by_a_random_one_that_draws_nothing(folder, lonely):
    frame = next(drawn_clip(1))
    dense, compressed = demo.demo_detectors(lonely, "", frame, RunOptions(torch.device("cpu"), "torch", None))
    assert (dense.is_trained, compressed.is_trained) == (False, True)
    assert "random weights" in dense.name
    parameters = [sum(p.numel() for p in model.detect.detector.parameters()) for model in (dense, compressed)]
    original = read_weights(folder / "dense.pth").state
    folded = {key for key in original if ".bn" in key or "downsample.1" in key}  # optimising folds BatchNorm
    assert parameters[0] >= sum(value.numel() for key, value in original.items() if key not in folded)
    assert parameters[1] < parameters[0]
    found = comparison.Found(frame, [{"boxes": torch.tensor([[0.0, 0, 50, 50]]), "labels": torch.tensor([1]),
                                      "scores": torch.tensor([0.99])}] * 2, [2.0, 1.0])  # fmt: skip
    left, right = comparison.draw_found([dense, compressed], found, [2.0, 1.0], 0.5).chunk(2, dim=2)
    assert torch.equal(left[:, -frame.shape[1] :], frame)
    assert not torch.equal(right[:, -frame.shape[1] :], frame)


def test_a_dense_detector_that_is_gone_and_not_told_is_not_guessed(lonely, empty_place, capsys):
    content = torch.load(lonely, weights_only=True)
    del content["widths"]
    torch.save(content, "untold.pth")
    assert play("--weights", "untold.pth", "--compare", "--output", "clip.mp4") == 2
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "untold.pth: it is not known how wide the dense network was" in line
    assert "--compare DENSE_WEIGHTS" in line


def test_a_demos_size_keeps_the_ratio_of_its_detectors_sides(monkeypatch):
    seen = []
    monkeypatch.setattr(demo, "optimize", lambda detector, images, runtime: seen.append(images) or detector)
    detector = tiny_detector("fcos", "resnet18")
    write_settings(detector, {"min_size": (96,), "max_size": 160})
    frame = torch.full((3, 4, 4), 51, dtype=torch.uint8)
    demo._optimized(detector, frame, RunOptions("cpu", "torch", 48))
    assert (detector.transform.min_size, detector.transform.max_size) == ((48,), 80)
    torch.testing.assert_close(seen[0][0], torch.full((3, 4, 4), 0.2))


def test_a_video_shows_how_many_times_faster_the_last_detector_is(monkeypatch):
    entered, shown = [], []

    class Detector:
        categories = ("__background__", "a")

        def __call__(self, images):
            entered.extend(images)
            return [
                {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
            ]

    detectors = [DemoDetector("dense", Detector()), DemoDetector("small", Detector())]
    frame = torch.full((3, 4, 4), 51, dtype=torch.uint8)
    [found] = comparison.detect(detectors, [frame], torch.device("cpu"))
    torch.testing.assert_close(entered, [torch.full((3, 4, 4), 0.2)] * 2)
    monkeypatch.setattr(comparison, "side_by_side", lambda pictures, titles: shown.extend(titles))
    comparison.draw_found(detectors, found, [50.0, 20.0], 0.5)
    assert shown == ["dense  50 ms  20.0 frames/s", "small  20 ms  50.0 frames/s  2.50x"]
    summary = comparison.summarise(detectors, [[50.0, 50.0], [20.0, 20.0]], seconds=0.25).splitlines()
    assert summary[0] == "2 frames, 8.0 frames/s from end to end" and summary[-1] == "speed-up: 2.50x"


def test_of_frames_in_work_together_each_has_its_share_of_the_time_and_they_come_in_order(monkeypatch):
    together = threading.Barrier(2)  # is passed only by two frames at a time

    class Detector:
        at_once = 2

        def __call__(self, images):
            together.wait(timeout=5)
            return [{"scores": images[0].mean()[None]}]

    ticks = threading.local()

    def clock():  # each call takes 6 seconds in its own thread
        ticks.now = getattr(ticks, "now", 0) + 6
        return ticks.now

    monkeypatch.setattr(comparison.time, "perf_counter", clock)
    frames = [torch.full((3, 4, 4), 51 * number, dtype=torch.uint8) for number in range(4)]
    found = list(comparison.detect([DemoDetector("small", Detector())], frames, torch.device("cpu")))
    assert [each.milliseconds for each in found] == [[3000.0]] * 4
    for number, each in enumerate(found):
        assert torch.equal(each.frame, frames[number])
        torch.testing.assert_close(each.predictions[0]["scores"], torch.tensor([0.2 * number]))


@pytest.mark.parametrize(("words", "at_once"), [([], 3), (["--compare"], 1)])
def test_frames_of_a_file_are_in_work_together_unless_detectors_are_compared(
    words, at_once, folder, empty_place, monkeypatch
):
    seen = []
    plain = video.detect

    def watched(detectors, *arguments):
        seen.extend(detector.detect.at_once for detector in detectors)
        return plain(detectors, *arguments)

    monkeypatch.setattr(video, "detect", watched)
    monkeypatch.setattr("norton_det.deploy.optimize.most_at_once", lambda: 3)
    assert play("--weights", folder / "small.pth", "--output", "clip.mp4", *words) == 0
    assert set(seen) == {at_once}
    assert len(list(Video(empty_place / "clip.mp4"))) == 3


def test_the_newest_trained_detector_is_taken(folder, empty_place):
    assert find_trained(None, None) is None
    for age, name in enumerate(("new", "old")):
        path = empty_place / "output" / name / "model_final.pth"
        path.parent.mkdir(parents=True)
        shutil.copy(folder / "small.pth", path)
        os.utime(path, (1000 - age, 1000 - age))
    assert str(find_trained(None, None)) == "output/new/model_final.pth"
    assert str(find_trained("mine.pth", None)) == "mine.pth"


def test_without_weights_and_network_one_line_tells_the_way(empty_place, monkeypatch, capsys):
    def offline(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(empty_place))
    assert play("--output", "clip.mp4") == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "make quickstart" in line and "no route to host" in line


def test_without_weights_cocos_detector_is_compressed_and_kept(folder, empty_place, monkeypatch, caplog, capsys):
    seen = []

    def quick(dense, plan, images, **options):
        seen.extend(images)
        return compress_and_recover(dense, plan, images, steps=1, **options | {"minutes": None})

    monkeypatch.setattr(demo, "coco_weights", lambda: read_weights(folder / "dense.pth"))
    monkeypatch.setattr(video, "COCO_FRAMES", 2)
    monkeypatch.setattr(demo, "compress_and_recover", quick)
    monkeypatch.setattr("norton_det.compression.recover.CROP", 64)
    assert play("--output", "clip.mp4", "--compare") == 0
    kept = empty_place / "output/coco_demo/model_final.pth"
    assert read_weights(kept).is_compressed
    assert [image.shape for image in seen] == [next(drawn_clip(1)).shape] * 2
    assert 0 <= min(image.min() for image in seen) < max(image.max() for image in seen) <= 1  # shares of white
    assert not kept.with_name("recovery.pth").exists()
    written = kept.stat().st_mtime_ns
    assert play("--output", "again.mp4") == 0
    assert kept.stat().st_mtime_ns == written


def test_ctrl_c_leaves_a_video_that_can_be_played(folder, empty_place, monkeypatch, capsys):
    shown = []
    picture = video.draw_found

    def interrupted(*arguments):
        shown.append(arguments)
        if len(shown) == 3:
            raise KeyboardInterrupt
        return picture(*arguments)

    monkeypatch.setattr(video, "draw_found", interrupted)
    assert play("--weights", folder / "small.pth", "--output", "clip.mp4", frames=100) == 0
    assert len(list(Video(empty_place / "clip.mp4"))) == 2
    assert "3 frames" in capsys.readouterr().out


@pytest.mark.parametrize("key", [ord("q"), 27])
def test_a_key_in_the_window_quits(key, folder, empty_place, monkeypatch, capsys):
    monkeypatch.setenv("DISPLAY", ":0")
    for name in ("namedWindow", "resizeWindow", "imshow", "destroyWindow"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1)
    keys = iter([-1, ord("x"), key])
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(keys))
    assert play("--weights", folder / "small.pth", frames=100) == 0
    assert capsys.readouterr().out.startswith("3 frames")


class Camera:
    """What cv2.VideoCapture gives for a camera, unplugged after some frames."""

    def __init__(self, index):
        assert index == 1
        self._frames = drawn_clip(5)

    def isOpened(self):
        return True

    def get(self, _):
        return 0.0

    def read(self):
        time.sleep(0.05)
        frame = next(self._frames, None)
        return frame is not None, None if frame is None else frame.permute(1, 2, 0).contiguous().numpy()

    def release(self):
        pass


def test_a_camera_is_shown_until_it_is_unplugged(folder, empty_place, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("norton_det.visualization.sources.cv2.VideoCapture", Camera)
        patch.setattr("norton_det.visualization.video.VideoFile.close", lambda self: None)
        assert play("--weights", folder / "small.pth", "--webcam", "1", "--output", "clip.mp4", frames=100) == 0
    assert re.match(r"[1-5] frames", capsys.readouterr().out)


def test_a_camera_without_a_frame_is_one_line(folder, empty_place, monkeypatch, capsys):
    monkeypatch.setattr("norton_det.visualization.sources.cv2.VideoCapture", Camera)
    monkeypatch.setattr(Camera, "read", lambda self: (False, None))
    assert play("--weights", folder / "small.pth", "--webcam", "1", "--output", "clip.mp4") == 2
    assert "the camera or video gives no frame" in capsys.readouterr().err


def test_of_a_damaged_video_nothing_but_our_line_is_printed(folder, empty_place):
    (empty_place / "cut.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(500))
    words = ["video", "--weights", str(folder / "small.pth"), "--video-input", "cut.mp4", "--output", "clip.mp4"]
    code = f"from norton_det.cli.main import main; raise SystemExit(main({words}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "norton-det video: cut.mp4: not a video that can be read (Invalid data found when processing input)\n",
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--weights", "small.pth"], "--output"),
        (["--weights", "small.pth", "--output", "clip.gif"], "an .mp4 file"),
        (["--weights", "small.pth", "--output", "c.mp4", "--video-input", "gone.mp4"], "no video file 'gone.mp4'"),
        (["--weights", "dense.pth", "--output", "c.mp4", "--compare"], "dense.pth is dense"),
        (["--weights", "dense.pth", "--output", "c.mp4", "--compare", "dense.pth"], "dense.pth is dense"),
        (["--weights", "small.pth", "--output", "c.mp4", "--compare", "small.pth"], "small.pth is compressed"),
        (["--weights", "small.pth", "--output", "c.mp4", "--device", "cuda:9"], "'cuda:9' is not there"),
        (["--weights", "gone.pth", "--output", "c.mp4"], "no weights file 'gone.pth'"),
        (["--config", "quickstart.yaml", "--output", "c.mp4"], "quickstart_norton/model_final.pth is not there"),
        (["--weights", "small.pth", "--output", "c.mp4", "--max-frames", "0"], "--max-frames: at least 1"),
        (["--weights", "small.pth", "--output", "c.mp4", "--size", "5"], "--size: at least 32"),
    ],
)
def test_a_mistake_is_one_line(words, expected, folder, empty_place, capsys):
    for name in ("dense.pth", "small.pth"):
        shutil.copy(folder / name, empty_place / name)
    assert main(["video", "--runtime", "torch", *words]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert expected in line
