"""What `import norton_det` offers passes on what it is asked for."""

import subprocess
import sys

import pytest
import torch
from detectors import tiny_classifier

import norton_det
from norton_det.layers.cp_conv import CPConv2d


def test_help_does_not_wait_for_torch():
    told = "import sys; from norton_det.cli.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0
    assert set(norton_det.__all__) <= set(dir(norton_det))
    with pytest.raises(AttributeError, match="'norton_det' has no attribute 'foo'"):
        _ = norton_det.foo


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("small.pth", {"precision": "bfloat16"}, "only an .xml file runs in bfloat16"),
        ("small.onnx", {"precision": "bfloat16"}, "onnxruntime runs float32, not 'bfloat16'"),
        ("small.onnx", {"norm_eps": 1e-5}, "an exported file says everything itself"),
        ("small.xml", {"categories": "names.json"}, "an exported file says everything itself"),
    ],
)
def test_what_a_file_does_not_take_is_refused(name, words, told, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=told):
        norton_det.load_detector(tmp_path / name, **words)


def test_rank_and_criterion_are_those_that_are_asked_for():
    network = tiny_classifier()
    plan = {"ranks": {"layer1.0.conv2": 1}, "rates": {"layer1.0.conv2": 0.5}}
    by_factors, report = norton_det.compress(network, plan, rank=3)
    by_deviation, other = norton_det.compress(network, plan, criterion="deviation")
    assert (by_factors.layer1[0].conv2.rank, by_deviation.layer1[0].conv2.rank) == (3, 1)
    assert other.kept["layer1.0.conv2"] != report.kept["layer1.0.conv2"]


@pytest.mark.parametrize("kind", ["mask_rcnn", "fcos"])
def test_a_plan_for_a_whole_detector_builds_its_parts_factorised(kind):
    with torch.device("meta"):
        detector = norton_det.build_detector(kind, plan="norton-43-all")
    assert isinstance(detector.backbone.fpn.layer_blocks[0][0], CPConv2d)
    if kind == "mask_rcnn":
        assert detector.roi_heads.box_head.fc6.rank == 128
    else:
        assert isinstance(detector.head.regression_head.conv[9], CPConv2d)


def test_a_detector_is_of_the_body_kind_and_classes_that_are_asked_for():
    detector = norton_det.build_detector("retinanet_v2", body="resnet18", num_classes=4)
    assert len(detector.backbone.body["layer1"]) == 2
    assert detector.head.classification_head.num_classes == len(detector.categories) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "yolo"}, "'yolo' is not one of faster_rcnn, mask_rcnn"),
        ({"kind": "fcos", "body": "vgg16"}, "'vgg16' is not one of resnet18"),
        ({"kind": "fcos", "body": "resnet18", "plan": "norton-59"}, "search-plan"),
    ],
)
def test_an_unknown_kind_body_or_plan_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        norton_det.build_detector(**arguments)
