"""Runs of the train command: from random and given weights, compressed on the way, with a teacher, gone on with."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from detectors import tiny_classifier, tiny_detector
from tiny_runs import SIZES, train
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

import norton_det
from norton_det.builders import detector as building
from norton_det.cli.main import main
from norton_det.models.norms import freeze_batch_norms
from norton_det.models.persistence import save_weights

pytestmark = pytest.mark.usefixtures("drawn_datasets")


@pytest.mark.parametrize(
    ("config", "metrics"),
    [
        ("faster_rcnn_norton.yaml", {"bbox"}),
        ("mask_rcnn_norton.yaml", {"bbox", "segm"}),
        ("keypoint_rcnn_norton.yaml", {"bbox", "keypoints"}),
        ("faster_rcnn_dense.yaml", {"bbox"}),
        ("mask_rcnn_v2_norton.yaml", {"bbox", "segm"}),
        ("retinanet_norton_all.yaml", {"bbox"}),
    ],
)
def test_training_leaves_what_it_says(config, metrics, tmp_path):
    assert train(config, "train.max_iterations=2", "output_dir=run") == 0
    run = tmp_path / "run"
    assert set(json.loads((run / "evaluation/metrics.json").read_text())) == metrics
    assert isinstance(json.loads((run / "evaluation/predictions.json").read_text()), list)
    assert [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
    ]
    assert norton_det.load_config(run / "config.yaml").train.max_iterations == 2
    assert not (run / "compression.json").exists()  # random weights: nothing was compressed
    content = torch.load(run / "model_final.pth", weights_only=True)
    assert {"model", "config", "network", "categories", "category_ids"} <= set(content)
    assert ("plan" in content) == ("norton" in config)
    assert norton_det.load_detector(run / "model_final.pth").categories == content["categories"]


def test_resuming_where_there_is_nothing_is_said(caplog):
    assert train("faster_rcnn_norton.yaml", "train.max_iterations=1", "output_dir=new", "--resume") == 0
    assert "no checkpoint in new/checkpoints: training starts at its beginning" in caplog.messages


def test_evaluation_alone_gives_the_same_numbers(tmp_path):
    assert train("faster_rcnn_norton.yaml", "train.max_iterations=2", "output_dir=run", "test.score_threshold=0") == 0
    assert (
        train(
            "faster_rcnn_norton.yaml",
            "output_dir=again",
            "model.weights=run/model_final.pth",
            "--eval-only",
            "test.score_threshold=0",
        )
        == 0
    )
    first, again = ((tmp_path / name / "evaluation/predictions.json").read_text() for name in ("run", "again"))
    assert first == again
    assert len(json.loads(first)) > 0
    assert not (tmp_path / "again/model_final.pth").exists()


def test_a_finished_run_resumes_to_the_same_weights(tmp_path):
    assert train("faster_rcnn_norton.yaml", "train.max_iterations=3", "output_dir=whole") == 0
    assert (
        train(
            "faster_rcnn_norton.yaml",
            "train.max_iterations=3",
            "output_dir=parts",
            "train.checkpoint_period=1",
        )
        == 0
    )
    (tmp_path / "parts/checkpoints/iteration_0000003.pth").unlink()
    assert train("faster_rcnn_norton.yaml", "train.max_iterations=3", "output_dir=parts", "--resume") == 0
    whole, parts = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"] for name in ("whole", "parts")
    )
    for name, value in whole.items():
        assert torch.equal(parts[name], value), name


def test_dense_weights_are_compressed_then_fine_tuned(tmp_path, caplog):
    assert train("faster_rcnn_dense.yaml", "train.max_iterations=1", "output_dir=dense") == 0
    assert (
        main(["compress", "--weights", "dense/model_final.pth", "--plan", "norton-59", "--output", "small.pth"]) == 0
    )
    report = json.loads((tmp_path / "small.json").read_text())
    assert len(report["layers"]) == 53
    assert (
        train("faster_rcnn_norton.yaml", "train.max_iterations=1", "output_dir=tuned", "model.weights=small.pth") == 0
    )
    assert "its structure is taken, model.plan is not applied" in caplog.text
    small, tuned = (norton_det.load_detector(path).state_dict() for path in ("small.pth", "tuned/model_final.pth"))
    assert {name: value.shape for name, value in small.items()} == {
        name: value.shape for name, value in tuned.items()
    }
    told = torch.load("tuned/model_final.pth", weights_only=True)["dense_weights"]
    assert told == str(tmp_path / "dense/model_final.pth")
    assert main(["compress", "--weights", "small.pth", "--plan", "norton-59", "--output", "again.pth"]) == 2


def test_a_compressed_detector_is_restored_without_labels(tmp_path, datasets, capsys):
    assert train("faster_rcnn_dense.yaml", "train.max_iterations=2", "output_dir=dense") == 0
    words = [
        "compress",
        "--weights",
        "dense/model_final.pth",
        "--plan",
        "norton-59",
        "--image-count",
        "6",
        "--steps",
        "9",
    ]
    images = ["--images", str(datasets / "shapes/train")]
    assert main([*words, "--output", "plain.pth"]) == 0
    assert main([*words, *images, "--output", "small.pth"]) == 0
    assert "part, restored" in capsys.readouterr().out
    report = json.loads((tmp_path / "small.json").read_text())
    parts = [part["name"] for part in report["recovery"]]
    assert (parts[0], parts[-4:], len(parts)) == ("stem", ["neck", "rpn", "box head", "whole detector"], 21)
    assert json.loads((tmp_path / "plain.json").read_text())["recovery"] == []
    plain, small = (torch.load(tmp_path / name, weights_only=True)["model"] for name in ("plain.pth", "small.pth"))
    assert {k: v.shape for k, v in plain.items()} == {k: v.shape for k, v in small.items()}
    assert not all(torch.equal(plain[name], small[name]) for name in plain)
    assert not list(tmp_path.glob("*.recovery.pth"))


@pytest.mark.parametrize("start", ["model.backbone_weights=resnet.pth", "model.weights=dense/model_final.pth"])
def test_what_is_compressed_at_the_start_of_a_run_is_restored_first(start, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(building, "compress_and_recover", partial(building.compress_and_recover, steps=9))
    if "resnet" in start:
        save_weights(tmp_path / "resnet.pth", tiny_classifier())
    else:
        assert train("faster_rcnn_dense.yaml", "train.max_iterations=1", "output_dir=dense") == 0
    words = [start, "train.max_iterations=1", "model.recover_images=4"]
    assert train("faster_rcnn_norton.yaml", *words, "output_dir=run") == 0
    assert "restored on 4 images: layer1.2 " in caplog.text
    assert not (tmp_path / "run/recovery.pth").exists()  # which is of use to a run that was stopped alone
    report = json.loads((tmp_path / "run/compression.json").read_text())
    parts = [part["name"] for part in report["recovery"]]
    assert (len(report["layers"]), parts[0], "layer4.2" in parts) == (53, "stem", True)


def test_a_compressed_backbone_is_kept_beside_the_run(tmp_path):
    torch.save(tiny_classifier().state_dict(), "resnet.pth")
    words = ["train.max_iterations=1", "train.warmup_iterations=0"]
    for run, weights in (("first", "resnet.pth"), ("second", "first/backbone_compressed.pth")):
        assert train("faster_rcnn_norton.yaml", *words, f"output_dir={run}", f"model.backbone_weights={weights}") == 0
    assert not (tmp_path / "second/backbone_compressed.pth").exists()
    states = [norton_det.load_detector(f"{run}/model_final.pth").state_dict() for run in ("first", "second")]
    assert [v.shape for v in states[0].values()] == [v.shape for v in states[1].values()]


def test_a_compressed_backbone_keeps_its_dilation(tmp_path):
    network = tiny_classifier()
    network.layer4[0].conv2.dilation = network.layer4[0].conv2.padding = (2, 2)
    save_weights(Path("dilated.pth"), network)
    words = ["train.max_iterations=1", "model.backbone_weights=dilated.pth", "output_dir=run"]
    assert train("retinanet_norton.yaml", *words) == 0
    kept = norton_det.load_resnet("run/backbone_compressed.pth", strict=False)
    trained = norton_det.load_detector("run/model_final.pth").backbone.body
    assert kept.layer4[0].conv2.dilation == trained.layer4[0].conv2.dilation == (2, 2)
    assert kept.layer4[0].conv2.rank == 1


def losses(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_torchvisions_detector_is_compressed_then_follows_it_as_teacher(tmp_path, caplog):
    """A file as torchvision's *_COCO_V1: frozen BatchNorm of eps 0, and no word of it."""
    dense = tiny_detector(classes=91, **SIZES)
    freeze_batch_norms(dense)
    dense.categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    torch.save({"model": dense.state_dict(), "categories": dense.categories}, "coco.pth")
    assert main(["compress", "--weights", "coco.pth", "--plan", "norton-43", "--output", "small.pth"]) == 0
    small = norton_det.load_detector("small.pth")
    assert small.categories[1] == "person"
    words = ["model.weights=small.pth", "model.teacher=coco.pth", "train.max_iterations=2"]
    assert train("faster_rcnn_norton.yaml", *words, "train.checkpoint_period=1", "output_dir=tuned") == 0
    assert all(line["loss_distillation"] > 0 for line in losses(tmp_path / "tuned"))
    tuned = norton_det.load_detector("tuned/model_final.pth")
    assert small.backbone.body["bn1"].eps == tuned.backbone.body["bn1"].eps == 1e-12
    checkpoint = tmp_path / "tuned/checkpoints/iteration_0000002.pth"
    assert torch.load(checkpoint, weights_only=True)["model"].keys() == tuned.state_dict().keys()

    checkpoint.unlink()
    assert train("faster_rcnn_norton.yaml", *words, "output_dir=tuned", "--resume") == 0
    assert "resuming from" in caplog.text
    again = norton_det.load_detector("tuned/model_final.pth").state_dict()
    assert all(torch.equal(again[name], value) for name, value in tuned.state_dict().items())


def test_a_teacher_that_does_not_fit_is_one_line(tmp_path, capsys):
    torch.save(tiny_detector(channels=24).state_dict(), "wide.pth")
    save_weights(Path("fcos.pth"), tiny_detector("fcos", channels=16))
    torch.save(tiny_classifier().state_dict(), "resnet.pth")
    for teacher, expected in (
        (
            "wide.pth",
            "model.teacher: the pyramid of wide.pth has 24 channels on P2 to P6, expected 16 channels on P2 to P6",
        ),
        (
            "fcos.pth",
            "model.teacher: the pyramid of fcos.pth has 16 channels on P3 to P7, expected 16 channels on P2 to P6",
        ),
        ("resnet.pth", "model.teacher: resnet.pth is a backbone, expected a detector"),
        ("dense.onnx", "model.teacher: dense.onnx is exported and has no features to follow"),
    ):
        assert train("faster_rcnn_norton.yaml", f"model.teacher={teacher}", "output_dir=run") == 2
        assert capsys.readouterr().err.strip().splitlines()[-1] == f"norton-det train: {expected}"
        assert not (tmp_path / "run").exists()
