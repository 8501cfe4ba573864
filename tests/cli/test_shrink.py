"""The shrink command as a user types it, on a machine whose times are known."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copyfile, copytree

import pytest
import torch
from detectors import frames, tiny_detector

import norton_det
from norton_det.cli.main import main
from norton_det.data.images import write_png
from norton_det.shrink import bench, instruments, making, shrinking
from norton_det.shrink.bench import Timed
from norton_det.shrink.choosing import Deadline
from norton_det.shrink.photos import read_photos
from norton_det.shrink.shrinking import Asked

WORDS = ["--weights", "dense.pth", "--images", "photos", "--steps", "2"]


class KnownMachine:
    """Takes a millisecond for so many parameters, and for images in proportion to their area."""

    def __init__(self, reference, photos, earlier=()):
        self.unit, self.least, self.moods, self.beside = 1.0, 1.0, [1.0], [*earlier, 1.0]

    def time(self, built):
        size = built.detector.transform.min_size[-1]
        milliseconds = sum(p.numel() for p in built.detector.parameters()) / 1e4 * size**2 / 64**2
        return Timed(milliseconds, 1.1 * milliseconds)


class SlowMachine(KnownMachine):
    """Has another mood."""

    def __init__(self, reference, photos, earlier=()):
        super().__init__(reference, photos, earlier)
        self.unit = 2.0


def on_the_known_machine(monkeypatch, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(instruments, "Stopwatch", KnownMachine)
    monkeypatch.setattr(shrinking, "find_family", partial(shrinking.find_family, count=2))
    for module in (bench, shrinking):
        monkeypatch.setattr(module, "SCORE", 0.3)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with photos, weights, and all that a first command has measured."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as monkeypatch:
        on_the_known_machine(monkeypatch, folder)
        for number, image in enumerate(frames(12)):
            write_png(Path(f"photos/{number:02}.png"), (255 * image).to(torch.uint8))
        norton_det.save(tiny_detector("faster_rcnn", "resnet18"), "dense.pth")
        assert main(["shrink", *WORDS, "--output", "small.pth", "--milliseconds", "1000"]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_where_all_is_measured(measured, tmp_path, monkeypatch):
    on_the_known_machine(monkeypatch, tmp_path)
    for name in ("photos", "small.shrink"):
        copytree(measured / name, name)
    copyfile(measured / "dense.pth", "dense.pth")


def milliseconds(path):
    return (
        KnownMachine(None, ()).time(norton_det.optimize(norton_det.load_detector(path), frames(1), "torch")).typical
    )


@pytest.fixture
def recoveries(monkeypatch):
    asked = []
    recover = making.compress_and_recover
    monkeypatch.setattr(making, "compress_and_recover", lambda *a, **how: asked.append(a[1]) or recover(*a, **how))
    return asked


def test_the_file_keeps_the_deadline_and_what_was_measured_serves_the_next_one(recoveries, capsys):
    dense = milliseconds("dense.pth")
    assert main(["shrink", *WORDS, "--output", "small.pth", "--milliseconds", str(0.2 * dense)]) == 0
    assert milliseconds("small.pth") <= 0.2 * dense
    printed = capsys.readouterr().out
    assert "small" in printed and "chosen: " in printed
    page = Path("small.html").read_text()
    told = json.loads(Path("small.shrink.json").read_text())
    assert told["is_met"] and told["dense"]["agreement"] == 100
    assert told["milliseconds_as_shipped"] == pytest.approx(dense, rel=0.01)
    assert "x as fast as the dense one as shipped" in printed
    assert [Path(path).name for path in told["held_back"]] == ["03.png", "07.png", "11.png"]
    assert f"<td>{told['small']['metrics']['bbox']['AP50']:.1f}</td>" in page
    small = norton_det.load_detector("small.pth")
    assert told["small"]["parameters"] == sum(p.numel() for p in small.parameters())
    assert told["small"]["choice"]["size"] == pytest.approx(small.transform.min_size[-1] / 64, abs=0.01)
    assert "http" not in page.replace("http://www.w3.org", "") and page.count("<img") == 2 * 3

    before = len(recoveries)
    assert 0 < before <= 3
    assert main(["shrink", *WORDS, "--output", "small.pth", "--milliseconds", str(0.2 * dense)]) == 0
    assert len(recoveries) == before
    assert main(["shrink", *WORDS, "--output", "small.pth", "--agreement", "1"]) == 0
    assert milliseconds("small.pth") == dense
    [state] = Path("small.shrink").rglob("state.json")
    assert len(json.loads(state.read_text())["milliseconds of the reference"]) > 1


def test_a_stopped_command_has_told_what_it_knows_and_leaves_its_best_file_and_a_page(monkeypatch, capsys, caplog):
    def stopped_after_two(choices, costs, quality, goal, make, made):
        for size in (0.5, 1.0):
            make(next(choice for choice in choices if choice.plan == "dense" and choice.size == size))
        raise KeyboardInterrupt

    monkeypatch.setattr(shrinking, "search", stopped_after_two)
    dense = milliseconds("dense.pth")
    assert main(["shrink", *WORDS, "--output", "small.pth", "--milliseconds", str(0.3 * dense)]) == 130
    assert capsys.readouterr().err.endswith("shrink: stopped; the same command goes on from there\n")
    told = [record.getMessage() for record in caplog.records]
    assert f"the dense detector takes {dense:.3g} ms in float32" in told
    assert told[-2].endswith("(small.pth, the best so far)") and told[-1].endswith("(not better)")
    assert milliseconds("small.pth") <= 0.3 * dense
    assert json.loads(Path("small.shrink.json").read_text())["is_met"]
    assert f"small.pth: {milliseconds('small.pth'):.3g} ms an image" in Path("small.html").read_text()


def test_the_same_command_chooses_the_same_though_the_machine_has_another_mood(monkeypatch):
    words = ["shrink", *WORDS, "--output", "small.pth", "--milliseconds", str(0.2 * milliseconds("dense.pth"))]
    assert main(words) == 0
    first = json.loads(Path("small.shrink.json").read_text())
    monkeypatch.setattr(instruments, "Stopwatch", SlowMachine)
    monkeypatch.setattr(shrinking, "reference_findings", None)  # they are kept too
    assert main(words) == 0
    assert json.loads(Path("small.shrink.json").read_text()) == first


def test_a_size_that_is_fixed_is_kept(recoveries):
    assert main(["shrink", *WORDS, "--output", "small.pth", "--milliseconds", "1000", "--size", "48"]) == 0
    assert norton_det.load_detector("small.pth").transform.min_size == (48,)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--output", "small.tflite", "--milliseconds", "60"], "expected a name that ends in .xml (openvino)"),
        (["--output", "small.pth", "--milliseconds", "1e-6"], "the fastest that can be made here takes"),
        (["--output", "small.pth", "--milliseconds", "0"], "expected a number above 0"),
        (["--output", "small.pth", "--agreement", "101"], "expected a share, up to 1, or points, up to 100"),
        (["--output", "small.pth", "--milliseconds", "60", "--size", "65"], "expected 32 to 64 pixels"),
        (["--output", "small.pth", "--milliseconds", "60", "--precision", "int8"], "small.pth can be float32 here"),
        (["--output", "small.pth", "--milliseconds", "60", "--image-count", "11"], "11 photos that can be read"),
    ],
)
def test_what_cannot_be_is_one_line(words, told, capsys):
    assert main(["shrink", *WORDS, *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in error
    assert not Path("small.pth").exists()


def test_a_detector_that_finds_nothing_is_one_line(monkeypatch, capsys):
    for module in (bench, shrinking):
        monkeypatch.setattr(module, "SCORE", 1.0)
    assert main(["shrink", *WORDS, "--output", "small.pth", "--milliseconds", "60"]) == 2
    assert "finds nothing of a score of at least 1 on 3 photos" in capsys.readouterr().err


def test_weights_that_are_compressed_already_are_one_line(capsys):
    norton_det.save(norton_det.compress(norton_det.load_detector("dense.pth"), "[0.1]*12")[0], "dense.pth")
    assert main(["shrink", *WORDS, "--output", "small.pth", "--milliseconds", "60"]) == 2
    assert "compressed already" in capsys.readouterr().err


def test_a_state_that_is_damaged_is_measured_anew(recoveries, caplog):
    [state] = Path("small.shrink").rglob("state.json")
    first = json.loads(state.read_text())
    assert first.pop("milliseconds of the reference") == [1.0]
    state.write_text("{")
    assert main(["shrink", *WORDS, "--output", "small.pth", "--milliseconds", "1000"]) == 0
    second = json.loads(state.read_text())
    assert second.pop("milliseconds of the reference") == [1.0] and second == first
    assert "cannot be read" in caplog.text


def test_what_is_measured_for_another_detector_or_in_another_unit_is_measured_anew():
    photos = read_photos(Path("photos"), 12)
    Path("other.yaml").write_text("MODEL: {}")
    asked = Asked(Deadline(60), "openvino", ("float32", "int8"), making.Recovery(1, None, 0))
    first = shrinking.digest([Path("dense.pth")], photos, asked)
    assert first == shrinking.digest([Path("dense.pth")], photos, replace(asked, goal=Deadline(30)))
    assert first != shrinking.digest([Path("dense.pth"), Path("other.yaml")], photos, asked)
    assert first != shrinking.digest([Path("dense.pth")], photos, replace(asked, precisions=("int8",)))
