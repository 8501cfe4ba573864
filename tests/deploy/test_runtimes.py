"""Every kind of detector in every runtime, against the detector that it came from."""

from functools import cache

import pytest
import torch
from clear import assert_same_detections, clear_detector, detect, pictures, require_little
from detectors import ALL_KINDS

import norton_det
from norton_det.deploy.export import export_onnx
from norton_det.deploy.openvino import convert_onnx
from norton_det.deploy.optimize import TorchDetector, optimize, prepare
from norton_det.deploy.parity import parity
from norton_det.deploy.runtimes import compile_openvino, load_exported
from norton_det.evaluation.consensus import VIEWS
from norton_det.models.settings import write_settings

PLANS = (None, "norton-77-all")
BODIES = {None: "resnet18", "norton-77-all": "resnet50"}
"""By plan: the presets are a ResNet-50's."""
EXPORTING = ("onnxruntime", "openvino")


def mixed(shape, form, inputs):
    """A timer that finds the depthwise form faster on large maps, the dense one on small ones."""
    return float((form == "dense") == (inputs[-1] > 30))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports a detector that is ready for a runtime once for all tests: the detector, the file, what it says."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def export(kind, plan=None, body=None):
        detector = clear_detector(kind, plan, body or BODIES[plan])
        path = folder / f"{kind}-{plan}-{body}.onnx"
        return detector, path, export_onnx(prepare(detector, pictures()[0], mixed), path, pictures()[0])

    return export


def run_by(runtime, path, description):
    pytest.importorskip("onnxruntime")
    if runtime == "onnxruntime":
        return load_exported(path)
    pytest.importorskip(runtime)
    return compile_openvino(convert_onnx(path, description), "float32", "the model")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("runtime", EXPORTING)
def test_an_exported_detector_finds_the_same_at_any_size(runtime, kind, plan, exported):
    detector, path, description = exported(kind, plan)
    found, expected = (detect(run, pictures()) for run in (run_by(runtime, path, description), detector))
    assert_same_detections(found, expected)
    assert parity(found, expected).is_equal


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_detector_in_torch_finds_the_same_at_any_size(kind, plan):
    detector = clear_detector(kind, plan, BODIES[plan])
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    fast = optimize(detector, pictures()[:1], "torch")
    assert_same_detections(detect(fast, pictures()), detect(detector, pictures()))
    assert (fast.categories, fast.category_ids) == (detector.categories, detector.category_ids)
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())


def test_a_body_of_grouped_convolutions_finds_the_same(exported):
    detector, path, description = exported("fcos", None, "resnext50_32x4d")
    expected = detect(detector, pictures())
    assert_same_detections(detect(optimize(detector, pictures()[:1], "torch"), pictures()), expected)
    for runtime in EXPORTING:
        assert_same_detections(detect(run_by(runtime, path, description), pictures()), expected)


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet", "fcos"])
def test_an_image_with_nothing_in_it_has_no_detections(kind, tmp_path):
    detector = clear_detector(kind, body="resnet18")
    full, empty = require_little(detector, pictures())
    [expected] = detect(detector, [empty])
    assert len(expected["labels"]) == 0
    description = export_onnx(detector, tmp_path / "model.onnx", full)
    fast = [optimize(detector, [full], "torch")]
    fast += [run_by(runtime, tmp_path / "model.onnx", description) for runtime in EXPORTING]
    for runs in fast:
        assert_same_detections(detect(runs, [full]), detect(detector, [full]))
        [found] = detect(runs, [empty])
        assert {name: value.shape for name, value in found.items()} == {
            name: value.shape for name, value in expected.items()
        }


def test_a_detectors_own_settings_are_kept(tmp_path):
    pytest.importorskip("onnxruntime")
    detector = clear_detector("faster_rcnn", body="resnet18")
    pooling = {"featmap_names": ["0", "1", "2"], "output_size": [7, 7], "sampling_ratio": 0}
    own = {
        "image_mean": (0.1, 0.2, 0.3),
        "image_std": (0.5, 0.6, 0.7),
        "size_divisible": 64,
        "fixed_size": (200, 150),
    }
    write_settings(detector, own | {"box_roi_pool": pooling | {"canonical_scale": 60, "canonical_level": 3}})
    expected = detect(detector, pictures())
    export_onnx(detector, tmp_path / "model.onnx", pictures()[0])
    for fast in (load_exported(tmp_path / "model.onnx"), optimize(detector, pictures()[:1], "torch")):
        assert_same_detections(detect(fast, pictures()), expected)


@pytest.mark.parametrize("kind", ["mask_rcnn", "keypoint_rcnn", "fcos"])
@pytest.mark.parametrize("runtime", EXPORTING)
def test_a_batch_is_detected_as_torchvision_does(runtime, kind, exported):
    detector, path, description = exported(kind)
    run = run_by(runtime, path, description)
    with torch.no_grad():
        assert_same_detections(run(pictures()), detector(pictures()))
    alike = [pictures()[0], pictures()[0].flip(2)]
    assert_same_detections(run(alike), detect(run, alike))
    assert run([]) == []


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet_v2"])
def test_bfloat16_finds_much_the_same(kind):
    detector = clear_detector(kind, body="resnet18")
    fast = optimize(detector, pictures(), "torch", "bfloat16")
    for ours, theirs in zip(detect(fast, pictures()), detect(detector, pictures()), strict=True):
        assert 0 < abs(ours["scores"].max() - theirs["scores"].max()) < 0.1


@pytest.mark.parametrize("kind", ["mask_rcnn", "keypoint_rcnn", "fcos"])
def test_a_detector_agrees_in_full_with_its_exported_file(kind, exported, monkeypatch):
    monkeypatch.setattr("norton_det.api.VIEWS", VIEWS[:1])  # what random weights find is found in no other view
    detector, path, _ = exported(kind)
    loaded = norton_det.load_detector(path)
    for pair in ((detector, loaded), (loaded, TorchDetector(detector))):
        found = norton_det.agreement(*pair, pictures(), score=0.3)
        assert [values.metrics["AP"] > 99.9 for values in found.tasks.values()] == [True] * len(found.tasks)
        assert found.found > 3
