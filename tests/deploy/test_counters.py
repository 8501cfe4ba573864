"""Time by part of exported files, by the counters of their runtimes."""

import pytest
from clear import clear_detector, pictures

from norton_det.analysis import parts
from norton_det.deploy.counters import by_part, seconds_by_part
from norton_det.deploy.optimize import prepare
from norton_det.deploy.writing import write_model

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_the_parts_are_those_that_torch_has_and_add_up(kind, name, tmp_path):
    detector = clear_detector(kind, body="resnet18")
    write_model(detector, tmp_path / name, pictures()[:1], "float32")
    found = seconds_by_part(tmp_path / name, "float32", pictures()[:1], runs=2)
    assert set(found) == set(parts.seconds_by_part(prepare(detector, pictures()[0], lambda *_: 0), pictures()[:1], 1))
    assert min(seconds for part, seconds in found.items() if part != "rest") > 0


def test_a_node_belongs_to_the_part_whose_module_it_stands_in():
    nodes = {
        "/transform/Div": 1,
        "/backbone/body/conv1/Conv": 2,
        "/backbone/body/layer1/layer1.0/conv1/Conv": 3,
        "/backbone/fpn/inner_blocks.0/Conv": 4,
        "/rpn/head/conv/Conv": 5,
        "/rpn/anchor_generator/Add": 6,
        "/rpn/TopK": 6.5,
        "/roi_heads/mask_roi_pool/RoiAlign": 7,
        "/roi_heads/mask_predictor/Relu": 8,
        "/roi_heads/Softmax": 9,
        "/Gather": 10,
    }
    found = by_part(nodes)
    assert found == {
        "resize": 1, "stem": 2, "stage 1": 3, "neck": 4, "rpn head": 5, "proposals": 12.5, "roi align": 7, "heads": 8,
        "post-processing": 9,
    }  # fmt: skip
    assert by_part({"/places/head/Conv": 1, "/places/TopK": 2}) == {"resize": 0, "heads": 1, "post-processing": 2}
