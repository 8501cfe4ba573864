"""The gradcam command as a user types it."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from detectors import tiny_classifier, tiny_detector
from PIL import Image

from norton_det.cli import gradcam as command
from norton_det.cli.main import main
from norton_det.data.images import write_png
from norton_det.models.norms import freeze_batch_norms
from norton_det.models.persistence import model_from_weights, save_weights
from norton_det.models.smaller_images import for_smaller_images
from norton_det.models.weights import read_weights

NAMES = ["__background__", "dog", "cat"]


@pytest.fixture(autouse=True)
def weights_and_images(in_an_empty_folder):
    torch.manual_seed(0)
    save_weights(Path("dense.pth"), tiny_classifier(classes=4), categories=list("abcd"))
    for place in ("images/1", "images/2", "images/3", "more/one"):
        Path(place).parent.mkdir(exist_ok=True)
        write_png(Path(f"{place}.png"), torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8))


def save_detector(path, names=NAMES, kind="faster_rcnn", body="resnet50"):
    """Its file has frozen BatchNorm, as torchvision's."""
    detector = tiny_detector(kind, body, channels=64)
    detector.categories, detector.category_ids = names, [0, 1, 2]
    frozen = copy.deepcopy(detector)
    freeze_batch_norms(frozen.backbone.body)
    save_weights(Path(path), frozen)
    return detector


def gradcam(*words, weights="dense.pth", images=("images", "more/one.png"), output="out/grid.png"):
    return main(["gradcam", "--weights", weights, "--images", *images, "--output", output, *words])


def test_plans_and_files_beside_the_dense_classifier(capsys):
    assert (
        main(["compress", "--weights", "dense.pth", "--plan", "norton-77", "--output", "small/model_final.pth"]) == 0
    )
    capsys.readouterr()
    words = ["--plans", "norton-43", "norton-77", "--compressed", "small/model_final.pth", "dense.pth"]
    assert gradcam(*words, "--image-count", "2", "--json", "out/grid.json") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["image", "explained", "norton-43", "norton-77", "small", "dense"]
    assert [line.split()[0] for line in table[1:4]] == ["1.png", "2.png", "one.png"]
    content = json.loads(Path("out/grid.json").read_text())
    assert [image["file"] for image in content["images"]] == ["images/1.png", "images/2.png", "more/one.png"]
    assert all(image["name"] == "abcd"[image["label"]] for image in content["images"])
    models = content["models"]
    assert [model["name"] for model in models] == ["dense", "norton-43", "norton-77", "small", "dense"]
    assert models[0]["parameters"] == models[4]["parameters"] > models[1]["parameters"] > models[2]["parameters"]
    assert models[2]["removed"] == pytest.approx(1 - models[2]["parameters"] / models[0]["parameters"])
    assert models[4]["similarity"]["images"] == pytest.approx([1, 1, 1])
    assert models[3]["similarity"] == models[2]["similarity"]  # the plan on the spot gives what the file holds
    assert models[2]["similarity"]["mean"] == pytest.approx(sum(models[2]["similarity"]["images"]) / 3)
    assert models[2]["similarity"]["mean"] < 0.99
    width, height = Image.open("out/grid.png").size
    assert width / height == pytest.approx((1.3 + 2.1 * 6) / (0.6 + (2.1 + 0.3) * 3), abs=0.01)
    assert sorted(path.name for path in Path("out").iterdir()) == ["grid.json", "grid.png"]


def test_a_detection_of_a_detector():
    detector = save_detector("detector.pth")
    for number in ("1", "2"):
        words = ["--plans", "norton-59-all", "--detection", number, "--json", f"{number}.json"]
        assert gradcam(*words, weights="detector.pth", images=["images"]) == 0
    first, second = (json.loads(Path(f"{number}.json").read_text()) for number in "12")
    for best, next_best in zip(first["images"], second["images"], strict=True):
        assert best["name"] in NAMES[1:]
        assert best["score"] >= next_best["score"]
        assert best["area"] != next_best["area"]
    dense, compressed = first["models"]
    trainable = sum(p.numel() for p in detector.parameters())
    frozen = sum(p.numel() for p in model_from_weights(read_weights("detector.pth")).parameters())
    assert dense["parameters"] == trainable > frozen  # so that removed is what the plan removes
    assert dense["parameters"] > compressed["parameters"]


@pytest.mark.parametrize(
    ("kind", "body", "plan"),
    [
        ("fcos", "resnet18", "[0.2]*12"),
        ("retinanet", "resnet50", "norton-59-all"),
        ("retinanet_v2", "resnet34", "[0.3]*20"),
        ("mask_rcnn_v2", "resnet101", "[0.3]*37"),
    ],
)
def test_a_detector_of_any_kind_and_body(kind, body, plan):
    save_detector("detector.pth", kind=kind, body=body)
    assert gradcam("--plans", plan, "--json", "1.json", weights="detector.pth", images=["images"]) == 0
    content = json.loads(Path("1.json").read_text())
    for image in content["images"]:
        left, top, right, bottom = image["area"]
        assert 0 <= left < right <= 48 and 0 <= top < bottom <= 40
        assert image["name"] in NAMES
    dense, compressed = content["models"]
    assert dense["parameters"] > compressed["parameters"]
    assert Path("out/grid.png").stat().st_size > 1000


def test_a_classifier_of_another_depth():
    save_weights(Path("deep.pth"), tiny_classifier("resnet101", classes=4))
    assert gradcam("--plans", "[0.2]*37", "--json", "1.json", weights="deep.pth", images=["images"]) == 0
    assert json.loads(Path("1.json").read_text())["models"][1]["removed"] > 0.3


def test_plans_are_restored_on_images(monkeypatch):
    seen = []
    real = command.compress_and_recover

    def recorded(model, plan, images, **options):
        seen.append(len(images))
        return real(model, plan, [], **options)

    monkeypatch.setattr(command, "compress_and_recover", recorded)
    assert gradcam("--plans", "norton-43", "norton-59", "--restore", "images", "--restore-count", "2") == 0
    assert gradcam("--plans", "norton-43") == 0
    assert seen == [2, 2, 0]


def one_line(capsys):
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert not Path("out").exists()
    return message


def test_without_weights_it_says_which_it_needs(capsys):
    assert main(["gradcam", "--images", "images", "--output", "out/grid.png"]) == 2
    message = one_line(capsys)
    assert "resnet50-0676ba61.pth" in message and "model_final.pth" in message


def test_weights_that_are_damaged_or_incomplete(capsys):
    content = Path("dense.pth").read_bytes()
    Path("damaged.pth").write_bytes(content[: len(content) // 2])
    assert gradcam(weights="damaged.pth") == 2
    assert "damaged.pth: not a weights file that can be read safely" in one_line(capsys)
    state = torch.load("dense.pth", weights_only=True)["model"]
    torch.save({name: value for name, value in state.items() if not name.startswith("fc")}, "headless.pth")
    assert gradcam(weights="headless.pth") == 2
    assert "headless.pth: weights are incomplete, missing fc.weight" in one_line(capsys)


def test_a_detector_of_one_stage_for_smaller_images_looks_at_other_places(capsys):
    dense = tiny_detector("fcos", "resnet18")
    save_weights(Path("dense.pth"), dense)
    save_weights(Path("small.pth"), for_smaller_images(dense, 0.5))
    assert gradcam("--compressed", "small.pth", weights="dense.pth") == 2
    assert "small.pth: its images have another size than those of --weights" in one_line(capsys)


def test_a_file_that_does_not_fit(capsys):
    save_detector("detector.pth")
    save_detector("other.pth", ["__background__", "dog", "bird"])
    save_weights(Path("three.pth"), tiny_classifier(classes=3))
    pairs = (("dense.pth", "detector.pth"), ("dense.pth", "three.pth"), ("detector.pth", "other.pth"))
    for weights, compressed in pairs:
        assert gradcam("--compressed", compressed, weights=weights) == 2
        assert f"{compressed}: its kind of model or its classes are not those of --weights" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        ([], {"weights": "nothing.pth"}, "no weights file 'nothing.pth'"),
        ([], {"output": "out/grid.jpg"}, "the grid is a .png file"),
        ([], {"images": ["nowhere"]}, "'nowhere' is neither a folder nor"),
        (["--plans", "norton-7"], {}, "did you mean 'norton-77'"),
        (["--detection", "0"], {}, "--detection: at least 1, got 0"),
        (["--restore", "nowhere", "--plans", "norton-77"], {}, "'nowhere' is neither"),
        (["--compressed", "nothing.pth"], {}, "no weights file 'nothing.pth'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, options, expected, capsys):
    assert gradcam(*words, **options) == 2
    assert expected in one_line(capsys)


def test_an_image_without_such_a_detection_is_named(capsys):
    save_detector("detector.pth")
    assert gradcam("--detection", "1000", weights="detector.pth") == 2
    assert "images/1.png: there is no detection 1000" in one_line(capsys)


def test_compressed_weights_are_not_compressed_again(capsys):
    assert main(["compress", "--weights", "dense.pth", "--plan", "norton-77", "--output", "small.pth"]) == 0
    capsys.readouterr()
    assert gradcam("--plans", "norton-43", weights="small.pth") == 2
    assert "small.pth is compressed already" in one_line(capsys)


def test_captum_is_asked_for_before_anything_is_compressed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    monkeypatch.setattr(command, "compress_and_recover", lambda *_, **__: pytest.fail("compressed"))
    assert gradcam("--plans", "norton-43") == 2
    assert "pip install norton_det[gradcam]" in one_line(capsys)
