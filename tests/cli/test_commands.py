"""The commands as a user types them: what they leave, and what they say of mistakes."""

import json
from pathlib import Path

import pytest
import torch
from detectors import tiny_classifier, tiny_detector
from tiny_runs import SMALL, TINY, train

from norton_det.analysis.roofline import Roofline
from norton_det.cli import benchmark, quickstart
from norton_det.cli.main import COMMANDS, main
from norton_det.data.catalog import find_dataset, read_categories
from norton_det.data.images import write_png
from norton_det.models.persistence import save_weights

pytestmark = pytest.mark.usefixtures("drawn_datasets")


def test_options_may_stand_anywhere(capsys):
    words = ["output_dir=run", "--resume", "train.max_iterations=1", *TINY, "data.workers=0"]
    assert main(["train", *words, "--config", "quickstart.yaml"]) == 0


def test_a_misspelt_option_is_not_taken_for_another(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", "quickstart.yaml", "--resum"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --resum" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named_first(capsys):
    assert main(["report", "--runs", "run", "--benchmark", "gone.json", "--output", "report.html"]) == 2
    assert capsys.readouterr().err == "norton-det report: gone.json: No such file or directory\n"


def test_a_quickstart_that_was_stopped_goes_on_and_one_that_ended_begins_anew(tmp_path, monkeypatch):
    """The training commands that it runs; what comes after the first is left out."""
    typed = []

    def stop_at_the_first(*words):
        typed.append(words)
        raise ValueError("stopped")

    monkeypatch.setattr(quickstart, "_command", stop_at_the_first)
    (tmp_path / "told").mkdir()
    summary = tmp_path / "told/summary.json"
    for ended in (False, True, False):
        if ended:
            summary.write_text("{}")
        assert main(["quickstart", "--output", "told"]) == 2
        assert not summary.exists()
    assert [words[-1] for words in typed] == ["--resume", "output_dir=told/dense", "--resume"]


def test_a_quickstart_that_is_stopped_says_that_it_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "main", lambda words: 130)
    assert main(["quickstart", "--output", "told"]) == 130
    assert capsys.readouterr().err == "norton-det quickstart: stopped; the same command goes on from there\n"


def test_analysis_gives_the_published_numbers(tmp_path, capsys):
    assert main(["analyze", "--config", "faster_rcnn_norton.yaml", "--json", "counts.json"]) == 0
    models = json.loads((tmp_path / "counts.json").read_text())["models"]
    assert models["dense"]["parameters"] == 41_808_406
    assert models["compressed"]["parameters"] == 22_012_182
    assert models["dense"]["macs"] == pytest.approx(134.85e9, rel=0.01)
    assert models["compressed"]["macs"] == pytest.approx(93.39e9, rel=0.01)
    assert set(models["dense"]["parts"]) == {"body", "neck", "rpn", "box_head"}
    assert "total" in capsys.readouterr().out


def test_benchmark_writes_its_numbers_and_a_plot(tmp_path, monkeypatch):
    usable = ["torch as shipped", "torch", "openvino"]
    monkeypatch.setattr(benchmark, "usable_treatments", lambda device: usable)  # int8 takes half a minute a model
    monkeypatch.setattr("norton_det.deploy.benchmark.measure_roofline", lambda device: Roofline(1e9, 1e9))
    words = ["benchmark", "--config", "quickstart.yaml", "--device", "cpu", "--runs", "2", "--json", "speed.json"]
    assert main([*words, "--plans", "[0.1]*12", "--input-size", "96", "128", *SMALL, "model.body=resnet18"]) == 0
    models = json.loads((tmp_path / "speed.json").read_text())["models"]
    assert models["dense"]["runs"] == models["[0.1]*12"]["runs"] == 2
    runs = dict.fromkeys(usable, 2)
    for model in models.values():
        assert {treatment: timed["runs"] for treatment, timed in model["treatments"].items()} == runs
    assert (tmp_path / "speed.png").stat().st_size > 1000


def test_predictions_are_evaluated(tmp_path, datasets):
    annotations = datasets / "shapes/annotations/instances_val.json"
    truth = [a for a in json.loads(annotations.read_text())["annotations"] if not a["iscrowd"]]
    perfect = [{**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 1.0} for a in truth]
    (tmp_path / "perfect.json").write_text(json.dumps(perfect))
    words = ["--annotations", str(annotations), "--task", "bbox", "--json", "ap.json"]
    assert main(["evaluate-predictions", *words, "--predictions", "perfect.json"]) == 0
    assert json.loads((tmp_path / "ap.json").read_text())["AP"] == pytest.approx(100)


def test_pictures_are_drawn(tmp_path, datasets):
    assert train("mask_rcnn_norton.yaml", "train.max_iterations=1", "output_dir=run") == 0
    image = str(datasets / "shapes/val/000000000001.jpg")
    assert (
        main(
            [
                "image",
                "--weights",
                "run/model_final.pth",
                "--input",
                image,
                "--output",
                "pictures",
                "--confidence",
                "0",
            ]
        )
        == 0
    )
    assert (tmp_path / "pictures/000000000001.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "--config", "nothing.yaml"], "no config 'nothing.yaml'"),
        (["train", "--config", "faster_rcnn_norton.yaml"], "coco"),
        (["train", "--config", "quickstart.yaml", "train.lrr=1"], "did you mean 'train.lr'"),
        (["train", "--config", "quickstart.yaml", "device=cuda:9"], "'cuda:9' is not there"),
        (["train", "--config", "quickstart.yaml", "model.detector=retina_net"], "did you mean 'retinanet'?"),
        (
            ["train", "--config", "quickstart.yaml", "model.weights=nothing.pth"],
            "no weights file 'nothing.pth'",
        ),
        (["train", "--config", "quickstart.yaml", "model.teacher=nothing.pth"], "no weights file 'nothing.pth'"),
        (["train", "--config", "quickstart.yaml", "train.distill_weight=0"], "train.distill_weight: "),
        (["train", "--config", "quickstart.yaml", "--eval-only"], "model.weights=FILE"),
        (["train", "--config", "quickstart.yaml", "data.train=shape_train"], "shapes_train"),
        (
            ["compress", "--weights", "nothing.pth", "--plan", "norton-77", "--output", "o.pth"],
            "no weights file",
        ),
        (
            ["compress", "--weights", "w.pth", "--plan", "norton-77", "--output", "o.pth", "--image-count", "1"],
            "--image-count: at least 2",
        ),
        (
            ["compress", "--weights", "w.pth", "--plan", "norton-77", "--output", "o.pth", "--minutes", "0"],
            "--minutes 0: expected a number above 0",
        ),
        (["analyze", "--config", "quickstart.yaml", "--input-size", "1", "1"], "at least 32 pixels"),
        (["dance"], "no command 'dance'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, expected, capsys, tmp_path):
    assert main(words) == 2
    message = capsys.readouterr().err.strip()
    assert expected in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_compress_does_not_know_is_one_line(capsys):
    save_weights(Path("resnet.pth"), tiny_classifier())
    assert main(["compress", "--weights", "resnet.pth", "--plan", "norton-7", "--output", "o.pth"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.endswith("did you mean 'norton-77'?") and not Path("o.pth").exists()


@pytest.mark.parametrize(
    ("weights", "words", "told"),
    [
        ("fcos.pth", ["--size", "900"], "--size 900: expected 1 to "),
        ("fcos.pth", ["--size", "0"], "--size: at least 1"),
        ("resnet.pth", ["--size", "100"], "--size: a classifier takes any size"),
        ("fcos.pth", ["--size", "40", "--steps", "0"], "smaller images have to be learnt"),
    ],
)
def test_a_size_that_cannot_be_learnt_is_one_line(weights, words, told, capsys):
    save_weights(Path("resnet.pth"), tiny_classifier())
    save_weights(Path("fcos.pth"), tiny_detector("fcos", "resnet18"))
    Path("photos").mkdir()
    for index in range(2):
        write_png(Path(f"photos/{index}.png"), torch.zeros(3, 64, 80, dtype=torch.uint8))
    start = ["compress", "--weights", weights, "--plan", "none", "--images", "photos", "--output", "o.pth"]
    assert main([*start, *words]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"norton-det compress: {told}") and not Path("o.pth").exists()


@pytest.mark.parametrize("configured", ["none", "64"])
def test_a_detector_for_smaller_images_is_evaluated_at_its_size_unless_the_configuration_says_another(
    configured, caplog
):
    """The configuration of the dense detector would show it larger images without a word."""
    dense = tiny_detector("faster_rcnn", "resnet18", classes=7)
    known = read_categories(find_dataset("shapes_val", "bbox"), "bbox")
    dense.categories, dense.category_ids = list(known.names), list(known.ids)
    save_weights(Path("dense.pth"), dense)
    words = ["--images", "shapes_train", "--image-count", "4", "--steps", "1", "--output", "small.pth"]
    assert main(["compress", "--weights", "dense.pth", "--plan", "none", "--size", "32", *words]) == 0
    assert train(
        "quickstart.yaml", "--eval-only", "model.weights=small.pth", f"model.min_size={configured}",
        "model.max_size=none", "model.anchor_sizes=none",
    ) == 0  # fmt: skip
    assert ("is made for images of 32 pixels, here they get 64" in caplog.text) == (configured == "64")


NOT_FITTING = "plan 'norton-77' is made for a ResNet-50's blocks, not for"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.body=resnet18"], f"{NOT_FITTING} a ResNet-18: "),
        (["model.backbone_weights=resnet.pth"], f"{NOT_FITTING} a ResNet-34: "),
        (["model.weights=fcos.pth", "model.detector=fcos"], f"{NOT_FITTING} a ResNet-18: "),
        (["model.weights=fcos.pth", "model.detector=retinanet"], "model.weights: fcos.pth is a fcos, but "),
        (["model.weights=resnet.pth"], "model.weights: resnet.pth is a backbone; "),
        (["model.backbone_weights=fcos.pth"], "model.backbone_weights: fcos.pth is a detector; "),
    ],
)  # fmt: skip
def test_a_plan_or_weights_that_do_not_fit_are_told_before_data_are_read(words, told, capsys):
    Path("photos").mkdir()
    Path("broken.json").write_text("{")
    save_weights(Path("resnet.pth"), tiny_classifier("resnet34"))
    save_weights(Path("fcos.pth"), tiny_detector("fcos", "resnet18"))
    data = [f"data.{split}={{images: photos, annotations: broken.json}}" for split in ("train", "test")]
    assert train("faster_rcnn_norton.yaml", *data, *words) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"norton-det train: {told}")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"norton-det {command}" in capsys.readouterr().out
