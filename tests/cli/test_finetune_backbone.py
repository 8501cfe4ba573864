"""`norton-det finetune-backbone` on a handful of drawn images of three classes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import norton_det
from norton_det.builders.detector import build_detector
from norton_det.builders.resolve import starting_weights
from norton_det.cli.main import main
from norton_det.compression.building import build_network
from norton_det.compression.plan import load_plan
from norton_det.data.catalog import Categories
from norton_det.data.imagefolder import LabelledImages
from norton_det.models.channels import read_body
from norton_det.models.persistence import origin_of
from norton_det.models.structure import named_structure

SCRIPT = Path(__file__).parents[2] / "tools/finetune_backbone.py"
CLASSES = ["bars", "blob", "plain"]


def draw(kind, rng):
    """A noisy 32 x 32 image: bright bars, a dark red blob, or plain green."""
    y, x = np.mgrid[:32, :32]
    picture = {
        "bars": np.where((x // 4 % 2 == 0)[..., None], [220, 220, 60], [20, 20, 160]),
        "blob": np.where(((x - 16) ** 2 + (y - 16) ** 2 < 120)[..., None], [200, 20, 20], [60, 60, 60]),
        "plain": np.full((32, 32, 3), [40, 190, 60]),
    }[kind]
    return Image.fromarray((picture + rng.integers(-20, 20, (32, 32, 3))).clip(0, 255).astype(np.uint8))


def build(body, classes):
    """A narrow ResNet as training begins."""
    torch.manual_seed(0)
    return build_network(named_structure(None, body, classes), None, width=0.125)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """train/ with 8 and val/ with 4 images a class, and dense.pth: an eighth of a ResNet-50, untrained."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                draw(name, rng).save(root / split / name / f"{number}.png")
    torch.save(build("resnet50", 3).state_dict(), root / "dense.pth")
    return root


def words(data, output, *more):
    return [
        *("finetune-backbone", "--data", str(data), "--output-dir", output, "--weights", str(data / "dense.pth")),
        *("--image-size", "32", "--batch-size", "8", "--lr", "0.05", "--workers", "0", "--device", "cpu"),
        *("--epochs", "40", *more),
    ]


def finetune(data, output, *more):
    return main(words(data, output, *more))


def norton_59():
    return load_plan("norton-59", read_body(build("resnet50", 3))).to_dict()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def metrics(folder):
    return json.loads((folder / "evaluation/metrics.json").read_text())


def test_dense_weights_are_compressed_and_learn(data, tmp_path):
    assert finetune(data, "run", "--plan", "norton-59", "--max-iterations", "120") == 0
    run = tmp_path / "run"
    assert [line["iteration"] for line in lines(run)] == [20, 40, 60, 80, 100, 120]
    assert lines(run)[-1]["loss"] < 0.7 * lines(run)[0]["loss"]
    assert metrics(run)["top1"] >= 90 and metrics(run)["top5"] == 100
    assert (run / "checkpoints/iteration_0000120.pth").is_file()

    content = torch.load(run / "model_final.pth", weights_only=True)
    assert content["plan"] == norton_59()
    assert content["categories"] == CLASSES and content["config"]["lr"] == 0.05
    assert len(content["kept"]["layer1.0.conv1"]) == int(8 * 0.72)
    network = norton_det.load_resnet(run / "model_final.pth").eval()
    assert network.layer1[0].conv2.rank == 1

    val = LabelledImages(data / "val", training=False, size=32)
    right = sum(network(image[None]).argmax().item() == label for image, label in (val[i] for i in range(len(val))))
    assert metrics(run)["top1"] == pytest.approx(100 * right / len(val))

    # evaluated alone, and taken further without a plan
    assert finetune(data, "again", "--weights", "run/model_final.pth", "--eval-only") == 0
    assert metrics(tmp_path / "again") == metrics(run)
    assert not (tmp_path / "again/model_final.pth").exists()
    assert finetune(data, "further", "--weights", "run/model_final.pth", "--max-iterations", "1") == 0
    further = torch.load(tmp_path / "further/model_final.pth", weights_only=True)
    assert further["plan"] == content["plan"] and further["kept"] == content["kept"]


def test_the_result_is_a_detectors_backbone(data, tmp_path, monkeypatch):
    monkeypatch.setenv("NORTON_DATASETS", str(tmp_path / "datasets"))
    assert finetune(data, "run", "--plan", "norton-59", "--max-iterations", "1") == 0
    config = norton_det.load_config("quickstart.yaml", ["model.backbone_weights=run/model_final.pth"])
    built = build_detector(config, Categories(("__background__", "a"), (0, 1)), starting_weights(config))
    body = norton_det.load_resnet("run/model_final.pth").state_dict()
    for name, value in built.model.backbone.body.state_dict().items():
        assert torch.equal(value, body[name]), name
    assert origin_of(built.model).plan == norton_59()
    assert len(origin_of(built.model).kept["layer1.0.conv1"]) == int(8 * 0.72)


def test_a_resumed_run_does_not_read_its_weights_again_and_takes_no_other_plan(data, tmp_path, capsys):
    """A ResNet-18, whose file is gone when the run goes on."""
    torch.save(build("resnet18", 3).state_dict(), "small.pth")
    plan = ["--plan", "[0.]*4+[0.5]*8", "--max-iterations", "3"]
    for output in ("whole", "parts"):
        assert finetune(data, output, "--weights", "small.pth", *plan, "--checkpoint-period", "1") == 0
    (tmp_path / "small.pth").unlink()
    (tmp_path / "parts/checkpoints/iteration_0000003.pth").unlink()
    resume = ["parts", "--weights", "small.pth", *plan, "--resume"]
    assert finetune(data, *resume, "--plan", "norton-77", "--batch-size", "4") == 2
    told = "plan was '[0.]*4+[0.5]*8' when the run began, got 'norton-77'; batch_size was 8 when the run began, got 4"
    assert told in " ".join(capsys.readouterr().err.split())
    assert finetune(data, *resume, "--label-smoothing", "0.1") == 0
    whole, parts = (torch.load(f"{name}/model_final.pth", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(parts["model"][name], value) for name, value in whole["model"].items())
    assert whole["plan"] == parts["plan"] and whole["kept"] == parts["kept"] and parts["categories"] == CLASSES
    assert norton_det.load_resnet("parts/model_final.pth").layer1[0].conv1.out_channels == 4


def test_few_images_behind_a_batch_norm_are_warned_about(data, caplog):
    assert finetune(data, "run", "--batch-size", "4", "--max-iterations", "1") == 0
    assert "images behind each BatchNorm: 4" in caplog.text
    caplog.clear()
    assert finetune(data, "run", "--batch-size", "8", "--max-iterations", "1") == 0
    assert "BatchNorm" not in caplog.text


@pytest.mark.parametrize(("precision", "iterations"), [("float32", 3), ("bfloat16", 3), ("float16", 9)])
def test_a_run_that_was_killed_resumes_to_the_same_bits(data, tmp_path, precision, iterations):
    more = ["--plan", "norton-59", "--max-iterations", str(iterations), "--precision", precision, "--workers", "1"]
    more += ["--teacher", str(data / "dense.pth")]
    assert finetune(data, "whole", *more) == 0
    assert finetune(data, "parts", *more, "--checkpoint-period", "1") == 0
    (tmp_path / f"parts/checkpoints/iteration_{iterations:07d}.pth").unlink()
    (tmp_path / "parts/model_final.pth").unlink()
    assert finetune(data, "parts", *more, "--resume") == 0
    whole, parts = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"] for name in ("whole", "parts")
    )
    for name, value in whole.items():
        assert torch.equal(parts[name], value), name
    assert {"classification", "distillation", "loss"} <= set(lines(tmp_path / "whole")[0])


def test_another_number_of_classes_replaces_the_classifier(data, tmp_path, caplog):
    torch.save(build("resnet50", 7).state_dict(), "seven.pth")
    assert finetune(data, "run", "--weights", "seven.pth", "--max-iterations", "1") == 0
    assert "seven.pth knows 7 other classes than the 3" in caplog.text
    assert norton_det.load_resnet("run/model_final.pth").fc.out_features == 3


def test_two_processes_train_and_evaluate_together(data, tmp_path):
    more = ["--plan", "norton-59", "--max-iterations", "80", "--batch-size", "24", "--lr", "0.02"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*launcher, str(SCRIPT), *words(data, "two", *more)[1:]],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    run = tmp_path / "two"
    assert [line["iteration"] for line in lines(run)] == [20, 40, 60, 80]
    assert lines(run)[-1]["loss"] < lines(run)[0]["loss"]
    assert metrics(run)["top1"] >= 90
    # evaluated by one process, the weights do the same
    assert finetune(data, "again", "--weights", "two/model_final.pth", "--eval-only") == 0
    assert metrics(tmp_path / "again") == metrics(run)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "nowhere"], "no folder 'nowhere/val', expected nowhere/val/<class>"),
        (["--weights", "nothing.pth"], "no weights file"),
        (["--plan", "norton-99"], "did you mean"),
        (["--batch-size", "0"], "0 images a step"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--label-smoothing", "2"], "label_smoothing must lie in"),
        (["--lr", "-1"], "Invalid learning rate"),
        (["--device", "cuda:99"], "cuda:99' is not there"),
        (["--workers", "-1"], "num_workers"),
        (["--damaged-images", "-1"], "--damaged-images: at least 0, got -1"),
        (["--teacher", "seven.pth"], "it knows 7 classes, the data have 3"),
        (["--weights", "seven.pth", "--eval-only"], "it cannot be evaluated"),
    ],
)
def test_mistakes_are_one_clear_line(data, capsys, more, message):
    torch.save(build("resnet50", 7).state_dict(), "seven.pth")
    assert finetune(data, "run", "--max-iterations", "1", *more) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("norton-det finetune-backbone: ") and message in error


def test_a_damaged_image_is_skipped_where_that_is_wanted(data, capsys, caplog):
    shutil.copytree(data, "data")
    path = Path("data/train/blob/3.png")
    path.write_bytes(path.read_bytes()[:50])
    more = ["--data", "data", "--max-iterations", "6"]
    assert finetune(data, "stopped", *more) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("norton-det finetune-backbone: data/train/blob/3.png: not a readable image (")
    assert finetune(data, "run", *more, "--damaged-images", "1") == 0
    assert "another image takes its place" in caplog.text


def test_train_and_val_have_the_same_classes(tmp_path, data, capsys):
    for split, names in (("train", "ab"), ("val", "ac")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            draw("plain", np.random.default_rng(0)).save(tmp_path / split / name / "0.png")
    assert finetune(data, "run", "--data", str(tmp_path)) == 2
    assert "train and val differ in classes: b, c" in capsys.readouterr().err
