"""Options arrive where they are meant to: what a command asks of the library, read off the call."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import tiny_classifier, tiny_detector
from PIL import Image

import norton_det
from norton_det.builders import finetuning
from norton_det.cli import analyze, export_model, search_plan
from norton_det.cli.main import main
from norton_det.compression.search.budget import Budget
from norton_det.compression.search.plan_search import SearchReport
from norton_det.models.persistence import save_weights
from norton_det.models.settings import write_settings


class Asked(ValueError):
    """Ends a command once it has asked."""


@pytest.fixture
def recorded(monkeypatch):
    """What a function of a module was called with; the call itself is the end."""

    def record(module, name):
        calls = []

        def ask(*arguments, **options):
            calls.append((arguments, options))
            raise Asked("asked")

        monkeypatch.setattr(module, name, ask)
        return calls

    return record


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def test_compression_takes_the_rank_and_the_criterion():
    network = tiny_classifier(classes=3)
    save_weights(Path("dense.pth"), network)
    plan = {"ranks": {"layer1.0.conv2": 1}, "rates": {"layer1.0.conv2": 0.5}}
    Path("plan.json").write_text(json.dumps(plan))
    words = ["compress", "--weights", "dense.pth", "--plan", "plan.json", "--output", "small.pth"]
    assert main([*words, "--rank", "3", "--criterion", "deviation"]) == 0
    _, expected = norton_det.compress(network, plan, rank=3, criterion="deviation")
    found = json.loads(Path("small.json").read_text())
    assert found["kept"] == expected.kept
    assert {row["name"]: row["rank"] for row in found["layers"] if row["rank"]} == {"layer1.0.conv2": 3}
    _, other = norton_det.compress(network, plan, rank=3)
    assert other.kept != expected.kept


def test_a_plan_is_searched_as_the_options_say(recorded):
    save_weights(Path("dense.pth"), tiny_classifier(classes=3))
    Path("images").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(f"images/{number}.png")
    calls = recorded(search_plan, "search_plan")
    words = ["search-plan", "--weights", "dense.pth", "--images", "images", "--budget", "macs=0.5"]
    more = ["--whole-detector", "--criterion", "csa", "--seed", "9", "--image-count", "2", "--input-size", "64", "96"]
    assert main([*words, "--output", "plan.json", *more]) == 2
    [((_, images, budget), options)] = calls
    assert len(images) == 2 and budget == Budget("macs", 0.5, (64, 96))
    assert options == {"whole_detector": True, "criterion": "csa", "seed": 9}


def test_a_plans_cost_is_told_as_its_share():
    text = search_plan.format_report(SearchReport(0.125, 250.0, 1000.0), Budget("macs", 0.5))
    assert text.splitlines() == ["macs: 1,000 -> 250 (25.0%)", "predicted error: 0.125 of the features' energy"]


@pytest.mark.parametrize(("precision", "count"), [("int8", 20), ("float32", 8)])
def test_int8_is_calibrated_on_all_images_and_float32_checked_on_few(precision, count, recorded):
    save_weights(Path("detector.pth"), tiny_detector())
    calls = recorded(export_model, "open_images")
    words = ["export-model", "--weights", "detector.pth", "--output", "model.xml", "--precision", precision]
    assert main([*words, "--images", "somewhere", "--image-count", "20"]) == 2
    assert calls == [(("somewhere", count), {})]


def classes(*names):
    for split in ("train", "val"):
        for name in names:
            Path("data", split, name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (32, 32)).save(f"data/{split}/{name}/{number}.png")


def test_fine_tuning_is_what_the_options_say(recorded):
    classes("a", "b")
    save_weights(Path("dense.pth"), tiny_classifier(classes=2))
    calls = recorded(finetuning, "finetuning_run")
    words = ["finetune-backbone", "--weights", "dense.pth", "--teacher", "dense.pth", "--data", "data"]
    words += [
        "--epochs",
        "30",
        "--batch-size",
        "3",
        "--lr",
        "0.03",
        "--weight-decay",
        "0.002",
        "--warmup-epochs",
        "2",
    ]
    words += ["--label-smoothing", "0.2", "--distill-weight", "0.7", "--temperature", "5", "--image-size", "32"]
    words += ["--checkpoint-period", "17", "--seed", "4", "--device", "cpu", "--max-iterations", "6"]
    assert main(words) == 2
    [((_, losses), options)] = calls
    assert (losses.label_smoothing, losses.distill_weight, losses.temperature) == (0.2, 0.7, 5)
    assert losses.teacher is not None
    expected = {"images_per_step": 3, "seed": 4, "epoch_length": 2, "epochs": 30, "max_iterations": 6, "lr": 0.03}
    expected |= {"warmup_epochs": 2, "weight_decay": 0.002, "checkpoint_period": 17}
    assert {name: options[name] for name in expected} == expected


def test_classes_of_other_names_are_other_classes(capsys):
    classes("a", "b")
    network = tiny_classifier(classes=2)
    network.categories = ["a", "c"]
    save_weights(Path("named.pth"), network)
    words = ["finetune-backbone", "--weights", "named.pth", "--data", "data", "--image-size", "32", "--device", "cpu"]
    assert main([*words, "--eval-only"]) == 2
    assert "it cannot be evaluated" in capsys.readouterr().err


def test_a_command_that_is_stopped_says_so(monkeypatch, capsys):
    def stopped(args: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(analyze, "run", stopped)
    assert main(["analyze", "--config", "quickstart.yaml"]) == 130
    assert capsys.readouterr().err == "norton-det analyze: stopped\n"


def test_the_height_comes_first(recorded):
    calls = recorded(analyze, "count_detector")
    assert main(["analyze", "--config", "quickstart.yaml", "model.width=0.125", "--input-size", "64", "96"]) == 2
    assert calls[0][0][1:] == (64, 96)


def test_predictions_are_evaluated_as_the_task_says(capsys):
    points = [value for number in range(17) for value in (10.0 + number, 20.0 + number, 2)]
    truth = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 15, 30, 30], "keypoints": points}
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 90, "width": 90}],
        "annotations": [truth],
        "categories": [{"id": 1, "name": "person"}],
    }
    Path("truth.json").write_text(json.dumps(content))
    found = {"image_id": 1, "category_id": 1, "score": 0.9, "keypoints": points}
    Path("found.json").write_text(json.dumps([found]))
    words = ["--annotations", "truth.json", "--predictions", "found.json", "--task", "keypoints"]
    assert main(["evaluate-predictions", *words]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["AP", "100.00"]


def test_an_image_is_detected_on_as_shares_of_white_and_its_scale_is_told(monkeypatch):
    monkeypatch.setattr("norton_det.cli.image.LONGEST_SHOWN", 45)
    detector = tiny_detector()
    write_settings(detector, {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5, "max_size": 45})
    save_weights(Path("detector.pth"), detector)
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save("photo.png")
    words = ["image", "--weights", "detector.pth", "--input", "photo.png", "--output", "out", "--json", "found.json"]
    assert main([*words, "--confidence", "0", "--device", "cpu"]) == 0
    [row] = json.loads(Path("found.json").read_text())
    assert (row["width"], row["height"], row["scale"]) == (45, 30, 2)
    picture = Image.fromarray(pixels)
    picture.thumbnail((45, 45))
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    with torch.no_grad():
        expected = norton_det.load_detector("detector.pth").eval()([image])[0]["scores"]
    assert [detection["score"] for detection in row["detections"]] == pytest.approx(expected.tolist(), abs=1e-5)
