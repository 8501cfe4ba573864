"""Keypoints of one's own, from a JSON to trained weights, AP, a report and pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from norton_det.builders.datasets import build_training_dataset
from norton_det.builders.detector import build_detector
from norton_det.builders.resolve import resolve_categories, resolve_dataset, starting_weights
from norton_det.cli import image, report, visualize_data
from norton_det.cli.main import main
from norton_det.config import load_config, save_config
from norton_det.data.catalog import Categories
from norton_det.evaluation.coco import precision_recall
from norton_det.keypoints import COCO_KEYPOINTS, Keypoints
from norton_det.models.persistence import save_weights
from norton_det.report import pictures
from norton_det.visualization.draw import draw_predictions, draw_targets

NAMES = ["left_ear", "nose", "right_ear"]
SHEEP = {"id": 4, "name": "sheep", "keypoints": NAMES, "skeleton": [[1, 2], [2, 3]]}
MODEL = [
    *("model.plan=none", "model.width=0.125", "model.min_size=96", "model.max_size=128", "model.fpn_channels=16"),
    *("model.box_channels=32", "model.keypoint_channels=8", "model.train_proposals=50", "model.test_proposals=50"),
    *("model.recover_images=0", "data.workers=0", "train.batch_size=2", "train.log_period=1", "device=cpu"),
]
DATA = [f"data.{split}={{images: images, annotations: {split}.json}}" for split in ("train", "test")]
CONFIG = "keypoint_rcnn_dense.yaml"


def write_dataset(category=SHEEP):
    """Four grey images of 90 x 60 pixels with a white object each, which has its keypoints side by side."""
    Path("images").mkdir(exist_ok=True)
    count = len(category["keypoints"])
    images, annotations = [], []
    for id in range(1, 5):
        pixels = np.full((60, 90, 3), 100, np.uint8)
        x, y = 10 * id, 15
        pixels[y : y + 30, x : x + 40] = 255
        Image.fromarray(pixels).save(f"images/{id}.png")
        images.append({"id": id, "file_name": f"{id}.png", "width": 90, "height": 60})
        points = [value for number in range(count) for value in (x + 5 + 30 * number / count, y + 15, 2)]
        one = {"id": id, "image_id": id, "category_id": 4, "bbox": [x, y, 40, 30], "area": 1200, "iscrowd": 0}
        annotations.append({**one, "keypoints": points, "num_keypoints": count})
    content = {"images": images, "annotations": annotations, "categories": [category]}
    for split in ("train", "test"):
        Path(f"{split}.json").write_text(json.dumps(content))
    return content


@pytest.fixture(autouse=True)
def dataset(in_an_empty_folder):
    write_dataset()


def configured(*words):
    return load_config(CONFIG, ["model.backbone_weights=none", *MODEL, *DATA, *words])


def train(*words):
    return main(
        ["train", "--config", CONFIG, "model.backbone_weights=none", *MODEL, *DATA, "train.max_iterations=1", *words]
    )


def perfect(content):
    keys = ("image_id", "category_id", "bbox", "keypoints")
    return [{**{key: a[key] for key in keys}, "score": 0.9} for a in content["annotations"]]


def test_three_keypoints_are_trained_evaluated_and_reported(caplog, capsys):
    assert train("output_dir=run") == 0
    state = torch.load("run/model_final.pth", weights_only=True)["model"]
    assert state["roi_heads.keypoint_predictor.kps_score_lowres.weight"].shape[1] == 3
    assert sum("OKS of 3 keypoints" in message for message in caplog.messages) == 1
    predictions = json.loads(Path("run/evaluation/predictions.json").read_text())
    assert predictions and {len(result["keypoints"]) for result in predictions} == {9}

    assert train("--eval-only", "model.weights=run/model_final.pth", "output_dir=again") == 0
    assert Path("again/evaluation/metrics.json").read_text() == Path("run/evaluation/metrics.json").read_text()
    assert main(["report", "--runs", "run", "--output", "report.html"]) == 0
    assert "data:image/jpeg" in Path("report.html").read_text()


def test_a_report_takes_the_sigmas_and_the_skeleton_of_the_run(monkeypatch):
    run = Path("run")
    (run / "evaluation").mkdir(parents=True)
    save_config(configured("data.oks_sigmas=[0.1, 0.2, 0.3]", "test.detections=200"), run / "config.yaml")
    found = perfect(write_dataset())
    (run / "evaluation/predictions.json").write_text(json.dumps(found))
    curves, drawn = [], []
    monkeypatch.setattr(report, "precision_recall", lambda *words: curves.append(words) or precision_recall(*words))
    for name, function in (("draw_targets", draw_targets), ("draw_predictions", draw_predictions)):
        monkeypatch.setattr(pictures, name, lambda *words, of=function: drawn.append(words[-1]) or of(*words))
    assert main(["report", "--runs", "run", "--output", "report.html"]) == 0
    assert curves == [(Path("test.json"), found, "keypoints", [0.1, 0.2, 0.3], 200)]
    assert len(drawn) == 8 and {keypoints.skeleton for keypoints in drawn} == {((0, 1), (1, 2))}


def test_the_demo_draws_the_skeleton_that_a_detector_carries(monkeypatch):
    config = configured()
    detector = build_detector(config, resolve_categories(config, resolve_dataset(config, "train")), None).model
    monkeypatch.setattr(image, "load_detector", lambda path: detector)
    drawn = []
    monkeypatch.setattr(image, "draw_predictions", lambda *words: drawn.append(words[-1]) or draw_predictions(*words))
    words = ["image", "--weights", "any.pth", "--input", "images/1.png", "--output", "out", "--json", "found.json"]
    assert main([*words, "--confidence", "0"]) == 0
    assert drawn == [Keypoints(tuple(NAMES), (2, 1, 0), ((0, 1), (1, 2)))]
    [row] = json.loads(Path("found.json").read_text())
    assert row["detections"] and {len(found["keypoints"]) for found in row["detections"]} == {9}


def test_predictions_are_evaluated_with_the_sigmas_of_the_annotations_or_given_ones():
    content = write_dataset()
    found = perfect(content)
    for result in found:
        result["keypoints"][::3] = [x + 2 for x in result["keypoints"][::3]]
    Path("found.json").write_text(json.dumps(found))
    words = ["evaluate-predictions", "--annotations", "test.json", "--predictions", "found.json", "--json", "ap.json"]
    shares = {}
    for sigma, more in ((0.05, []), (0.1, ["--oks-sigmas", "0.1", "0.1", "0.1"])):
        assert main([*words, "--task", "keypoints", *more]) == 0
        shares[sigma] = json.loads(Path("ap.json").read_text())["AP"]
        similarity = np.exp(-(2**2) / (2 * 1200 * (2 * sigma) ** 2))
        assert shares[sigma] == pytest.approx(10 * (np.arange(0.5, 1, 0.05) <= similarity).sum())
    assert 0 < shares[0.05] < shares[0.1]
    assert main([*words, "--task", "keypoints", "--oks-sigmas", "0.1"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data.flip_pairs=[[left_ear, tail]]"],
            "data.flip_pairs: no keypoint 'tail', expected names of left_ear, nose",
        ),
        (["data.flip_pairs=[[nose, nose]]"], "data.flip_pairs: 'nose' is named twice"),
        (["data.oks_sigmas=[0.1, 0.2]"], "OKS sigmas [0.1, 0.2], expected 3 above zero, one a keypoint"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(words, message, capsys):
    assert train("output_dir=run", *words) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not Path("run").exists()


def test_a_test_set_with_other_keypoints_is_refused_before_anything_is_trained(capsys):
    content = json.loads(Path("test.json").read_text())
    content["categories"][0]["keypoints"] = NAMES[::-1]
    Path("test.json").write_text(json.dumps(content))
    assert train("output_dir=run") == 2
    assert "test.json: the keypoints are right_ear, nose, left_ear, expected" in capsys.readouterr().err
    assert not Path("run").exists()


def test_pairs_of_the_configuration_replace_those_of_the_names(caplog):
    def flips(*words):
        config = configured(*words)
        files = resolve_dataset(config, "train")
        categories = resolve_categories(config, files)
        build_training_dataset(config, files, categories)
        return categories.keypoints.flip, any("data.flip_pairs" in message for message in caplog.messages)

    assert flips() == ((2, 1, 0), False)
    assert flips("data.flip_pairs=[[nose, left_ear]]") == ((1, 0, 2), False)
    assert flips("data.flip_pairs=[]", "data.augmentation=none") == ((0, 1, 2), False)
    assert flips("data.flip_pairs=[]") == ((0, 1, 2), True)  # told: nothing changes places in a mirror


def test_another_number_of_keypoints_gets_a_fresh_predictor_and_keeps_the_rest(caplog, capsys):
    people = build_detector(configured(), Categories(("__background__", "sheep"), (0, 4)), None).model
    assert people.keypoints == COCO_KEYPOINTS
    save_weights(Path("seventeen.pth"), people)
    config = configured("model.weights=seventeen.pth")
    categories = resolve_categories(config, resolve_dataset(config, "train"))
    built = build_detector(config, categories, starting_weights(config)).model
    assert "weights know 17 keypoints: their predictor starts afresh for 3" in caplog.messages
    assert built.keypoints == Keypoints(tuple(NAMES), (2, 1, 0), ((0, 1), (1, 2)))
    old, new = people.state_dict(), built.state_dict()
    afresh = {name for name in new if new[name].shape != old[name].shape or not torch.equal(new[name], old[name])}
    assert afresh == {f"roi_heads.keypoint_predictor.kps_score_lowres.{kind}" for kind in ("weight", "bias")}
    assert new["roi_heads.keypoint_predictor.kps_score_lowres.bias"].shape == (3,)

    assert train("--eval-only", "model.weights=seventeen.pth", "output_dir=run") == 2
    assert "seventeen.pth knows 17 keypoints, expected the data's 3" in capsys.readouterr().err


def test_training_images_are_drawn_with_their_own_skeleton(monkeypatch):
    drawn = []
    monkeypatch.setattr(visualize_data, "draw_targets", lambda *words: drawn.append(words) or draw_targets(*words))
    words = ["visualize-data", "--config", CONFIG, "--count", "2", "--output", "pictures", *MODEL, *DATA]
    assert main([*words, "data.augmentation=flip"]) == 0
    assert [keypoints.skeleton for *_, keypoints in drawn] == [((0, 1), (1, 2))] * 2
    for _, target, *_ in drawn:
        x = target["keypoints"][0, :, 0].tolist()
        assert x == sorted(x)  # mirrored or not, the left ear is on the left
    assert len(list(Path("pictures").iterdir())) == 2
