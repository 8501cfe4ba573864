"""`norton-det export-model`: what it writes is a detector, and what it refuses leaves everything as it was."""

import json

import pytest
import torch
from detectors import tiny_detector

import norton_det
from norton_det.cli.main import main
from norton_det.data.catalog import Categories, find_dataset, read_categories
from norton_det.data.shapes import write_shapes
from norton_det.models.persistence import save_weights
from norton_det.models.settings import write_settings

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


def small_detector(categories):
    """Untrained; it finds five things on any image."""
    detector = tiny_detector("faster_rcnn", "resnet18", classes=len(categories.names))
    anchors = {"sizes": [[side] for side in (32, 64, 128, 256, 512)], "aspect_ratios": [[0.5, 1.0, 2.0]] * 5}
    few = {"rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 40, "box_detections_per_img": 5}
    write_settings(detector, few | {"min_size": (96,), "max_size": 160, "rpn_anchor_generator": anchors})
    torch.nn.init.normal_(detector.roi_heads.box_predictor.cls_score.weight, std=0.5)
    detector.categories, detector.category_ids = list(categories.names), list(categories.ids)
    return detector


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "detector.pth"
    save_weights(path, small_detector(Categories(("__background__", "cat", "dog"), (0, 17, 18))))
    return path


def test_the_file_is_a_detector(weights, tmp_path, capsys):
    output = tmp_path / "new" / "model.onnx"
    assert main(["export-model", "--weights", str(weights), "--output", str(output)]) == 0
    assert "exported" in capsys.readouterr().out
    exported = norton_det.load_detector(output)
    assert (exported.categories, exported.category_ids) == (["__background__", "cat", "dog"], [0, 17, 18])
    assert len(exported([torch.rand(3, 70, 90)])[0]["boxes"]) == 5
    assert list(output.parent.iterdir()) == [output]


def test_evaluation_takes_the_file_as_any_other(tmp_path, monkeypatch, capsys):
    write_shapes(tmp_path / "shapes", train_images=2, val_images=4)
    monkeypatch.setenv("NORTON_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    categories = read_categories(find_dataset("shapes_val", "bbox"), "bbox")
    save_weights(tmp_path / "detector.pth", small_detector(categories))
    assert main(["export-model", "--weights", "detector.pth", "--output", "detector.onnx"]) == 0
    evaluate = ["train", "--config", "quickstart.yaml", "--eval-only", "data.workers=0", "test.batch_size=1"]
    evaluate += ["model.plan=none", "model.min_size=96", "model.max_size=160", "model.test_proposals=40"]
    evaluate += ["test.score_threshold=0", "test.detections=5", "model.anchor_sizes=[32,64,128,256,512]"]
    for name in ("detector.pth", "detector.onnx"):
        assert main([*evaluate, f"model.weights={name}", f"output_dir={name}.run"]) == 0
    found, expected = (
        json.loads((tmp_path / f"{name}.run/evaluation/predictions.json").read_text())
        for name in ("detector.onnx", "detector.pth")
    )
    assert [(f["image_id"], f["category_id"]) for f in found] == [(e["image_id"], e["category_id"]) for e in expected]
    assert len(found) == 20
    assert all(f["bbox"] == pytest.approx(e["bbox"], abs=1e-2) for f, e in zip(found, expected, strict=True))

    capsys.readouterr()
    mask = [*evaluate, "model.weights=detector.onnx", "output_dir=mask", "model.detector=mask_rcnn"]
    assert main(mask) == 2
    assert "detector.onnx gives boxes, labels, scores, expected masks too" in capsys.readouterr().err


def test_a_file_may_have_constant_shapes(weights, tmp_path):
    output = tmp_path / "model.xml"
    words = ["export-model", "--weights", str(weights), "--output", str(output), "--fixed-size"]
    assert main([*words, "128x160"]) == 0
    exported = norton_det.load_detector(output)
    assert [len(found["boxes"]) for found in exported([torch.rand(3, 70, 90), torch.rand(3, 60, 90)])] == [5, 5]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "model.onnx", "--fixed-size", "64x64"], "when resized, this detector takes 64 x 64"),
        (["--output", "model.pt"], "float32 goes to an .onnx or .xml file"),
        (["--output", "model.onnx", "--precision", "int8"], "int8 to an .xml file"),
        (["--output", "model.onnx", "--images", "nowhere"], "neither a folder nor one of"),
    ],
)
def test_a_mistake_is_one_line(more, message, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export-model", "--weights", str(weights), *more]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
