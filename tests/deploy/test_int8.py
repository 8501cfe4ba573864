"""Quantised models: what is int8, and from which images its ranges come."""

from unittest.mock import MagicMock

import pytest
from clear import clear_detector, pictures, require_little
from torch import nn

from norton_det.deploy import runtimes
from norton_det.deploy.export import Description, resize
from norton_det.deploy.int8 import quantised_parts, restore_parts
from norton_det.deploy.openvino import quantize, to_openvino
from norton_det.deploy.parity import parity
from norton_det.deploy.runtimes import compile_openvino
from norton_det.deploy.writing import export_file, files_of


def with_biases(detector):
    """As trained convolutions have them; where all are 0 OpenVINO 2026.4 gives 0 behind an R-CNN's neck in int8."""
    for layer in detector.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias, layer.bias.mean().item(), 0.05)
    return detector


def test_an_int8_file_finds_some_of_what_the_detector_finds(tmp_path, capsys):
    """What it costs in AP is measured on trained weights, in docs/benchmarks.md; random ones tell little."""
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    detector, path = with_biases(clear_detector("fcos", body="resnet18")), tmp_path / "model.xml"
    compared = export_file(detector, path, pictures()[:2], "int8")
    assert sorted(tmp_path.iterdir()) == sorted(files_of(path))
    assert 0.2 * compared.expected < compared.found
    assert capsys.readouterr().out == ""
    assert_only_networks_are_quantised(openvino.Core().read_model(path))


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
def test_int8_quantises_the_convolutions_and_no_coordinates_and_parts_can_be_restored(kind):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    detector = with_biases(clear_detector(kind, body="resnet18"))
    original = to_openvino(detector, pictures()[0])
    quantised = quantize(original, detector, pictures()[:2])
    assert_only_networks_are_quantised(quantised)
    parts = quantised_parts(quantised)
    assert parts[:6] == ["stem", "stage 1", "stage 2", "stage 3", "stage 4", "neck"]

    def found(model):
        return compile_openvino(model, "float32", "a model")(pictures())

    assert not parity(found(quantised), found(original)).is_equal
    restore_parts(quantised, original, ["stem", "neck"])
    assert quantised_parts(quantised) == [part for part in parts if part not in ("stem", "neck")]
    restore_parts(quantised, original, parts)
    assert quantised_parts(quantised) == []
    assert parity(found(quantised), found(original)).is_equal


UNNAMED = ("ShapeOf", "ConvolutionBackpropData")
"""Operations whose names do not tell where they stand."""


def assert_only_networks_are_quantised(model):
    kinds = [operation.get_type_name() for operation in model.get_ops()]
    assert kinds.count("FakeQuantize") > kinds.count("Convolution") > 30
    for operation in (found for found in model.get_ops() if found.get_type_name() == "FakeQuantize"):
        readers = [place.get_node() for place in operation.output(0).get_target_inputs()]
        names = [node.get_friendly_name() for node in readers if node.get_type_name() not in UNNAMED]
        assert not [name for name in names if "roi_pool" in name or name.count("/") < 3]


def test_int8_takes_no_ranges_from_images_with_nothing_in_them(monkeypatch):
    pytest.importorskip("openvino")
    nncf = pytest.importorskip("nncf")
    taken = []
    monkeypatch.setattr(nncf, "quantize", lambda model, data, **_: taken.extend(data.get_data()) or model)
    detector = clear_detector("keypoint_rcnn", body="resnet18")
    full, empty = require_little(detector, pictures())
    model = to_openvino(detector, full)
    quantize(model, detector, [empty, full])
    assert [given["images"].tolist() for given in taken] == [[resize(detector, full).tolist()]]
    with pytest.raises(ValueError, match="on these it finds nothing"):
        quantize(model, detector, [empty])


@pytest.mark.parametrize(("precision", "hint"), [("float32", "f32"), ("bfloat16", "bf16"), ("int8", "f32")])
def test_openvino_may_run_in_bfloat16_where_that_is_asked_for(precision, hint, monkeypatch):
    core, model = MagicMock(), MagicMock(outputs=["num_detections", "boxes"])
    model.inputs = [MagicMock(partial_shape=shape) for shape in ((1, 3, 96, 160), (1, 2))]
    description = Description(96, 160, None, ("boxes",), ("a",), (0,))
    model.get_rt_info.return_value.astype.return_value = description.to_json()
    monkeypatch.setattr(runtimes, "openvino_core", lambda: core)
    compile_openvino(model, precision, "the model")
    assert core.compile_model.call_args.args[2]["INFERENCE_PRECISION_HINT"] == hint
