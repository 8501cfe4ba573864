"""`norton_det.export`: what it writes is a detector, and what it refuses leaves everything as it was."""

import pytest
import torch
from clear import CATEGORIES, assert_same_detections, clear_detector, detect, pictures

import norton_det
from norton_det.deploy import export
from norton_det.deploy.openvino import save_openvino

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def detector():
    return clear_detector("retinanet", body="resnet18")


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_what_is_written_is_the_detector(name, detector, tmp_path):
    path = tmp_path / "new" / name
    compared = norton_det.export(detector.train(), path, pictures())
    assert detector.training
    assert compared.is_equal and compared.expected == compared.found == 12 * len(pictures())
    exported = norton_det.load_detector(path)
    assert_same_detections(detect(exported, pictures()), detect(detector.eval(), pictures()))
    assert (exported.categories, exported.category_ids) == CATEGORIES
    assert {file.suffix for file in path.parent.iterdir()} == ({".xml", ".bin"} if name[-1] == "l" else {".onnx"})


def test_a_file_that_differs_from_torch_is_not_written(detector, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"what was there")
    real = export.ExportedGraph.forward

    def shifted(self, images, sizes):
        counts, boxes, *others = real(self, images, sizes)
        return (counts, boxes + 1, *others)

    monkeypatch.setattr(export.ExportedGraph, "forward", shifted)
    with pytest.raises(ValueError, match=r"model\.onnx is not written, its detections differ from torch's"):
        norton_det.export(detector, path, pictures())
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "precision", "images", "message"),
    [
        ("model.pt", "float32", 1, "float32 goes to an .onnx or .xml file"),
        ("model.onnx", "int8", 1, "int8 to an .xml file"),
        ("model.xml", "float16", 1, "'float16'"),
        ("model.onnx", "float32", 0, "at least one image"),
    ],
)
def test_what_cannot_be_written_is_said(name, precision, images, message, detector, tmp_path):
    with pytest.raises(ValueError, match=message):
        norton_det.export(detector, tmp_path / name, [torch.rand(3, 60, 80)] * images, precision)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_an_openvino_file_is_named(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise RuntimeError("basic_ios::clear: iostream error")  # OpenVINO's words for it

    monkeypatch.setattr("openvino.save_model", full)
    with pytest.raises(OSError, match=r"model\.xml: is the disk full\?"):
        save_openvino(None, tmp_path / "model.xml")
    assert list(tmp_path.iterdir()) == []
