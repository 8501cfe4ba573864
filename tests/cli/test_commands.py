"""The commands as a user types them, on a handful of drawn images."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from detectors import tiny_classifier, tiny_detector
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

import norton_det
from norton_det.builders import detector as building
from norton_det.builders.detector import build_detector
from norton_det.builders.resolve import resolve_categories, resolve_dataset, starting_weights
from norton_det.cli import benchmark, image, quickstart
from norton_det.cli.main import COMMANDS, main
from norton_det.data.shapes import CATEGORIES, write_shapes
from norton_det.models.norms import freeze_batch_norms
from norton_det.models.persistence import save_weights
from norton_det.visualization.draw import draw_predictions

SMALL = [
    "model.width=0.125",
    "model.min_size=96",
    "model.max_size=128",
    "model.fpn_channels=16",
    "model.box_channels=32",
    "model.mask_channels=8",
    "model.keypoint_channels=8",
]
SIZES = {"channels": 16, "box": 32, "mask": 8, "keypoint": 8}
TINY = [
    *SMALL,
    "train.batch_size=2",
    "test.batch_size=2",
    "train.log_period=1",
    "model.recover_images=0",
    "model.train_proposals=50",
    "model.test_proposals=50",
]


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / "shapes", train_images=12, val_images=6)
    return root


@pytest.fixture(autouse=True)
def in_an_empty_folder(datasets, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("NORTON_DATASETS", str(datasets))
    monkeypatch.chdir(tmp_path)


def train(config, *words):
    return main(
        [
            "train",
            "--config",
            config,
            "data.train=shapes_train",
            "data.test=shapes_val",
            "data.workers=0",
            "model.backbone_weights=none",
            "device=cpu",
            *TINY,
            *words,
        ]
    )


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


def test_resuming_where_there_is_nothing_is_said(caplog):
    assert train("faster_rcnn_norton.yaml", "train.max_iterations=1", "output_dir=new", "--resume") == 0
    assert "no checkpoint in new/checkpoints: training starts at its beginning" in caplog.messages


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
