"""Compressed detectors of Detectron2's find the same in torch, onnxruntime and OpenVINO."""

import pytest
import torch
from of_detectron2 import FEW, PUBLIC, as_tensor, picture, write_config, write_pkl

import norton_det
from norton_det.deploy.export import export_onnx
from norton_det.deploy.fold import fold_batch_norms
from norton_det.deploy.openvino import convert_onnx
from norton_det.deploy.parity import parity
from norton_det.deploy.runtimes import compile_openvino, load_exported
from norton_det.models.bags import pool_by_bags

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

IMAGES = [as_tensor(picture(*size)) for size in ((97, 131), (150, 110))]
DEEP = {"ranks": {f"layer3.{block}.conv2": 2 for block in range(1, 23)}, "rates": {"layer3.5.conv2": 0.4}}
"""A plan for a ResNet-101."""
OTHER = {"MODEL__ROI_BOX_HEAD__POOLER_SAMPLING_RATIO": 2, "MODEL__ANCHOR_GENERATOR__OFFSET": 0.5}


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "depth", "changes"), [*((family, 50, {}) for family in PUBLIC), ("faster_rcnn", 101, OTHER)]
)
def test_a_compressed_one_finds_the_same_in_all_runtimes(family, depth, changes, tmp_path):
    write_pkl(tmp_path / "model_final.pkl", family, depth)
    config = write_config(tmp_path / "config.yaml", family, **{**FEW, **changes})
    dense = norton_det.load_detector(tmp_path / "model_final.pkl", d2_config=config)
    compressed, _ = norton_det.compress(dense, "norton-59" if depth == 50 else DEEP)
    norton_det.save(compressed, tmp_path / "small.pth")
    detector = norton_det.load_detector(tmp_path / "small.pth")
    expected = [detector([image])[0] for image in IMAGES]
    assert all(len(found["boxes"]) > 5 for found in expected)
    description = export_onnx(detector, tmp_path / "small.onnx", IMAGES[0])
    height, width = detector.transform(IMAGES[:1])[0].tensors.shape[2:]
    export_onnx(detector, tmp_path / "fixed.onnx", IMAGES[0], frame=(height, width))
    fixed = load_exported(tmp_path / "fixed.onnx")(IMAGES[:1])
    assert parity(fixed, expected[:1]).is_equal, str(parity(fixed, expected[:1]))
    fold_batch_norms(detector)
    pool_by_bags(detector)
    runtimes = {
        "torch": detector,
        "onnxruntime": load_exported(tmp_path / "small.onnx"),
        "openvino": compile_openvino(convert_onnx(tmp_path / "small.onnx", description), "float32", "it"),
    }
    for runtime, runs in runtimes.items():
        found = [runs([image])[0] for image in IMAGES]
        assert parity(found, expected).is_equal, (runtime, str(parity(found, expected)))
        for ours, theirs in zip(found, expected, strict=True):
            if "masks" in theirs:
                differ = (ours["masks"] >= 0.5) != (theirs["masks"] >= 0.5)
                assert differ.float().mean() < 1e-4
            if "keypoints" in theirs:
                torch.testing.assert_close(ours["keypoints"], theirs["keypoints"], rtol=0, atol=1e-2)
