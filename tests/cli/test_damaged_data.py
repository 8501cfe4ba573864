"""Training and evaluation on images of which some cannot be read, and on annotations that are cut off."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from norton_det.cli.main import main
from norton_det.data.shapes import write_shapes

TINY = [
    *("model.width=0.125", "model.min_size=64", "model.max_size=96", "model.fpn_channels=16", "device=cpu"),
    *("model.box_channels=32", "model.train_proposals=50", "model.test_proposals=50", "train.batch_size=2"),
    *("train.max_iterations=7", "train.checkpoint_period=5", "train.log_period=1", "data.augmentation=none"),
]


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / "shapes", train_images=7, val_images=3)
    return root


@pytest.fixture(autouse=True)
def shapes(intact, tmp_path, monkeypatch):
    """A copy of the dataset to be damaged."""
    shutil.copytree(intact, tmp_path / "datasets")
    monkeypatch.delenv("NORTON_DATASETS", raising=False)
    return tmp_path / "datasets" / "shapes"


def damage(folder, *places):
    paths = [sorted(folder.iterdir())[place] for place in places]
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return [str(path.relative_to(Path.cwd())) for path in paths]


def train(output, *words):
    return main(["train", "--config", "quickstart.yaml", *TINY, *words, f"output_dir={output}"])


def one_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def weights(folder):
    return torch.load(Path(folder) / "model_final.pth", weights_only=True)["model"]


def test_a_damaged_image_is_named_and_skipped_and_the_run_resumes_to_the_same_bits(shapes, caplog):
    [path] = damage(shapes / "train", 3)
    assert train("whole", "data.damaged_images=1", "data.workers=0") == 0
    told = [message for message in caplog.messages if message.endswith(": another image takes its place")]
    assert len(told) == 1 and told[0].startswith(f"{path}: not a readable image (")
    assert train("again", "data.damaged_images=1", "data.workers=2") == 0
    Path("again/checkpoints/iteration_0000007.pth").unlink()
    Path("again/model_final.pth").unlink()
    assert train("again", "data.damaged_images=1", "data.workers=2", "--resume") == 0
    expected, found = weights("whole"), weights("again")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize("workers", [0, 1])
def test_without_a_limit_the_first_damaged_image_stops_training(workers, shapes, capsys):
    [path] = damage(shapes / "train", 3)
    assert train("run", f"data.workers={workers}") == 2
    assert one_line(capsys).startswith(f"norton-det train: {path}: not a readable image (")


def test_one_damaged_image_too_many_stops_training(shapes, capsys):
    paths = damage(shapes / "train", 1, 4)
    assert train("run", "data.damaged_images=1") == 2
    line = one_line(capsys)
    assert line.endswith("damaged images met: 2, tolerated: 1") and any(path in line for path in paths)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_never_leaves_an_image_out(workers, shapes, capsys):
    [path] = damage(shapes / "val", 1)
    assert train("run", f"data.workers={workers}", "data.damaged_images=9", "train.max_iterations=1") == 2
    assert one_line(capsys).startswith(f"norton-det train: {path}: not a readable image (")
    assert not Path("run/evaluation").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_cut_in_half_are_one_line(split, shapes, capsys):
    path = shapes / "annotations" / f"instances_{split}.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    assert train("run") == 2
    assert one_line(capsys).startswith(f"norton-det train: datasets/shapes/annotations/{path.name}: not valid JSON (")


def test_predictions_cut_in_half_are_one_line(shapes, capsys):
    annotations = shapes / "annotations" / "instances_val.json"
    predictions = json.dumps([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}] * 3)
    Path("found.json").write_text(predictions[: len(predictions) // 2])
    words = ["--annotations", str(annotations), "--predictions", "found.json", "--task", "bbox"]
    assert main(["evaluate-predictions", *words]) == 2
    assert "found.json: not valid JSON" in one_line(capsys)
