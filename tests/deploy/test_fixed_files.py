"""Exported files whose tensors have constant shapes."""

import pytest
import torch
from clear import assert_same_detections, clear_detector, detect, pictures, require_little
from detectors import ALL_KINDS

import norton_det
from norton_det.deploy.export import export_onnx
from norton_det.deploy.openvino import convert_onnx, save_openvino
from norton_det.deploy.runtimes import load_exported
from norton_det.deploy.writing import _padded_to, export_file

onnx = pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
FRAME = (192, 256)
"""Larger than what the pictures that fit become, by more than the padding that they have alone."""


def fitting():
    return [picture for picture in pictures() if picture.shape[1] < picture.shape[2]]


def in_frame(detector, images):
    """What torchvision finds where it pads images to the frame."""
    detect(detector, images[:1])
    with _padded_to(FRAME, detector.transform):
        return detect(detector, images)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_file_of_constant_shapes_finds_the_same(kind, tmp_path):
    detector = clear_detector(kind, body="resnet18")
    files = [tmp_path / "model.onnx", tmp_path / "model.xml"]
    description = export_onnx(detector, files[0], fitting()[0], FRAME)
    save_openvino(convert_onnx(files[0], description), files[1])
    for file in files:
        assert_same_detections(load_exported(file)(fitting()), in_frame(detector, fitting()))
    told = [
        [side.dim_value for side in value.type.tensor_type.shape.dim]
        for graph in [onnx.load(str(files[0])).graph]
        for value in (*graph.input, *graph.output)
    ]
    model = openvino.Core().read_model(files[1])
    expected = [[1, 3, *FRAME], [1, 2], [1], [12, 4], [12], [12]]
    expected += [[12, 1, 28, 28]] * kind.startswith("mask") + [[12, 17, 56, 56]] * kind.startswith("keypoint")
    assert told == expected
    assert [[*value.shape] for value in (*model.inputs, *model.outputs)] == expected  # dynamic ones have no shape


@pytest.mark.parametrize("kind", ["keypoint_rcnn", "fcos"])
def test_an_image_with_nothing_in_it_has_no_detections(kind, tmp_path):
    detector = clear_detector(kind, body="resnet18")
    detect(detector, fitting()[:1])
    with _padded_to(FRAME, detector.transform):
        full, empty = require_little(detector, fitting())
    description = export_onnx(detector, tmp_path / "model.onnx", full, FRAME)
    save_openvino(convert_onnx(tmp_path / "model.onnx", description), tmp_path / "model.xml")
    for name in ("model.onnx", "model.xml"):
        found = [len(found["boxes"]) for found in load_exported(tmp_path / name)([full, empty])]
        assert found == [len(found["boxes"]) for found in in_frame(detector, [full, empty])]
        assert found[0] > found[1] == 0


def test_export_compares_it_with_torch_and_refuses_what_does_not_fit(tmp_path):
    detector, path = clear_detector("faster_rcnn", body="resnet18"), tmp_path / "model.onnx"
    with pytest.raises(ValueError, match="an image is 240 x 160 when resized, this detector takes 192 x 256"):
        norton_det.export(detector, path, pictures(), frame=FRAME)
    assert list(tmp_path.iterdir()) == []
    compared = export_file(detector, path, fitting(), frame=FRAME)
    assert compared.is_equal and compared.expected == 12 * len(fitting())
    with pytest.raises(ValueError, match="an image is 240 x 160 when resized"):
        norton_det.load_detector(path)([torch.rand(3, 120, 80)])
