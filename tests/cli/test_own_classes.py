"""Trained detectors that are given other classes than they know."""

import json
from pathlib import Path

import pytest
import torch
from detectors import tiny_detector
from tiny_runs import SIZES, TINY, train

import norton_det
from norton_det.builders.detector import build_detector
from norton_det.builders.resolve import resolve_categories, resolve_dataset, starting_weights
from norton_det.cli import image
from norton_det.cli.main import main
from norton_det.data.shapes import CATEGORIES
from norton_det.models.persistence import save_weights
from norton_det.visualization.draw import draw_predictions

pytestmark = pytest.mark.usefixtures("drawn_datasets")


@pytest.fixture
def own_classes(tmp_path, datasets):
    """shapes with two categories renamed and one removed, as `data.train` takes it."""
    data = json.loads((datasets / "shapes/annotations/instances_train.json").read_text())
    names = {"person": "somebody", "fish": "salmon"}
    data["categories"] = [
        {**c, "name": names.get(c["name"], c["name"])} for c in data["categories"] if c["name"] != "ball"
    ]
    ids = {c["id"] for c in data["categories"]}
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] in ids]
    (tmp_path / "own.json").write_text(json.dumps(data))
    return f"{{images: {datasets}/shapes/train, annotations: own.json}}"


OWN_NAMES = ["__background__", "somebody", "car", "house", "salmon", "kite"]
OWN_IDS = [0, 1, 3, 8, 11, 15]
PER_CLASS = {
    "roi_heads.box_predictor.cls_score.weight": 1,
    "roi_heads.box_predictor.bbox_pred.bias": 4,
    "roi_heads.mask_predictor.mask_fcn_logits.weight": 1,
    "head.classification_head.cls_logits.weight": 1,
}
"""Values of a class in a row of rows, as the tensor has them."""


@pytest.mark.parametrize(
    ("kind", "count", "shape"),
    [
        ("faster_rcnn", 4, (6, 32)),
        ("mask_rcnn", 8, (6, 32)),
        ("retinanet", 2, (54, 16, 3, 3)),
        ("fcos", 2, (6, 16, 3, 3)),
    ],
)
def test_own_classes_replace_the_predictors_and_keep_the_rest(kind, count, shape, own_classes, caplog):
    trained = tiny_detector(kind, classes=7, **SIZES)
    trained.categories = ["__background__", *(c.name for c in CATEGORIES)]
    trained.category_ids = [0, *(c.id for c in CATEGORIES)]
    save_weights(Path("trained.pth"), trained)
    config = norton_det.load_config(
        f"{kind}_dense.yaml", [*TINY, "model.weights=trained.pth", f"data.train={own_classes}"]
    )
    categories = resolve_categories(config, resolve_dataset(config, "train"))
    detector = build_detector(config, categories, starting_weights(config)).model
    [told] = [message for message in caplog.messages if message.startswith("categories differ: ")]
    assert told == (
        "categories differ: trained.pth lacks somebody, salmon; the data lacks person, ball, fish:"
        " the predictors keep what they know of car, house, kite and start afresh for somebody, salmon"
    )
    assert (detector.categories, detector.category_ids) == (OWN_NAMES, OWN_IDS)

    old, new = trained.state_dict(), detector.state_dict()
    predictors = {
        name for name in new if "_predictor." in name or name.startswith("head.classification_head.cls_logits")
    }
    assert len(predictors) == count
    for name in new.keys() - predictors:
        assert torch.equal(new[name], old[name]), name
    kept = [(0, 0), *((OWN_NAMES.index(n), trained.categories.index(n)) for n in ("car", "house", "kite"))]
    for name, per_class in PER_CLASS.items():
        if name in new:
            ours = new[name].unflatten(0, (-1, len(OWN_NAMES), per_class))
            theirs = old[name].unflatten(0, (-1, len(trained.categories), per_class))
            assert all(torch.equal(ours[:, now], theirs[:, before]) for now, before in kept)
            assert not any(torch.equal(ours[:, 1], theirs[:, before]) for before in range(7))
    scores = (
        "roi_heads.box_predictor.cls_score.weight" if "rcnn" in kind else "head.classification_head.cls_logits.weight"
    )
    assert new[scores].shape == shape
    if "rcnn" in kind:
        assert new["roi_heads.box_predictor.bbox_pred.weight"].shape == (24, 32)


def test_own_classes_are_trained_and_drawn(own_classes, datasets, monkeypatch, caplog):
    assert train("faster_rcnn_norton.yaml", "train.max_iterations=1", "output_dir=first") == 0
    words = ["model.weights=first/model_final.pth", f"data.train={own_classes}", f"data.test={own_classes}"]
    assert train("faster_rcnn_norton.yaml", "train.max_iterations=1", "output_dir=second", *words) == 0
    content = torch.load("second/model_final.pth", weights_only=True)
    assert (content["categories"], content["category_ids"]) == (OWN_NAMES, OWN_IDS)
    found = json.loads(Path("second/evaluation/predictions.json").read_text())
    assert {result["category_id"] for result in found} <= set(OWN_IDS[1:])
    assert train("faster_rcnn_norton.yaml", "--eval-only", "output_dir=third", *words) == 0
    told = "categories differ: the detector lacks somebody, salmon; own.json lacks person, ball, fish"
    assert any(line.startswith(told) for line in caplog.messages)

    drawn = []
    monkeypatch.setattr(image, "draw_predictions", lambda *args: (drawn.append(args[2]), draw_predictions(*args))[1])
    picture = str(datasets / "shapes/val/000000000001.jpg")
    words = ["--weights", "second/model_final.pth", "--input", picture, "--output", "pictures", "--confidence", "0"]
    assert main(["image", *words]) == 0
    assert drawn == [OWN_NAMES]
    assert Path("pictures/000000000001.png").stat().st_size > 1000
