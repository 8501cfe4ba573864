"""Optimised and exported detectors against the detector that they came from."""

import copy
import shutil
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from norton_det.models.detectors import DetectorSettings, DetectorSpec, build_from_spec
from norton_det.models.resnet import ResNetSpec
from torch import nn

from norton_det.analysis.complexity import count, total
from norton_det.compression.plan import load_plan
from norton_det.deploy import fold, runtimes, treatments
from norton_det.deploy import optimize as optimizing
from norton_det.deploy.export import METADATA_KEY, Description, describe_export, export_onnx
from norton_det.deploy.fold import fold_batch_norms, fold_pyramid
from norton_det.deploy.forms import choose_forms
from norton_det.deploy.openvino import quantize, save_openvino, to_openvino
from norton_det.deploy.optimize import optimize
from norton_det.deploy.runtimes import compile_openvino, load_exported
from norton_det.layers.cp_conv import CPConv2d, DepthwiseCPConv2d
from norton_det.models.norms import freeze_batch_norms

KINDS = ("faster_rcnn", "mask_rcnn", "keypoint_rcnn")
SIZES = ((120, 160), (85, 128), (128, 85), (97, 131))
RUNTIMES = ("torch", "onnxruntime", "openvino")


WEIGHTS = {"cls_logits": 0.005, "cls_score": 0.1, "bbox_pred": 0.003}
"""Standard deviations of the predictors' weights: scores that lie apart, yet below 1 in float32, and boxes that stay
near their small anchors. Of equal scores, and of twin boxes, both cut to the image, rounding chooses one."""


def small_detector(kind, plan="norton-43-all"):
    """Random weights with trained-looking BatchNorm, so that folding shows, and detections at a low threshold."""
    torch.manual_seed(0)
    plan = load_plan({"notation": "[0.]+[0.1]*19", "rank": 2, "parts": load_plan(plan).parts})
    detector = build_from_spec(
        DetectorSpec(
            kind,
            5,
            plan.apply(ResNetSpec.dense(0.125)),
            fpn_channels=32,
            box_channels=64,
            mask_channels=16,
            keypoint_channels=16,
            part_ranks={**plan.parts, "box_head": 16},
            settings=DetectorSettings(
                min_size=(160,),
                max_size=266,
                anchor_sizes=(8, 16, 32, 64, 128),
                test_proposals=30,
                score_threshold=0.0,
                detections=12,
            ),
        )
    ).eval()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_var, 0.5, 2),
                (module.running_mean, -0.2, 0.2),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
            ):
                nn.init.uniform_(tensor, low, high)
    for name, module in detector.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and (predictor := name.split(".")[-1]) in WEIGHTS:
            nn.init.normal_(module.weight, std=WEIGHTS[predictor])
    detector.categories, detector.category_ids = ["__background__", "a", "b", "c", "d"], [0, 1, 2, 4, 8]
    return detector


@pytest.fixture(scope="module")
def images():
    return [torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) for size in SIZES]


@torch.no_grad()
def detect(detector, images):
    """One at a time: in a batch the smaller images are padded, which their detections feel."""
    return [detector([image])[0] for image in images]


def assert_same_detections(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert set(ours) == set(theirs)
        assert len(ours["boxes"]) == len(theirs["boxes"]) > 0
        assert torch.equal(ours["labels"], theirs["labels"])
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-2)
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-4)
        if "masks" in ours:
            assert ours["masks"].shape == theirs["masks"].shape
            torch.testing.assert_close(ours["masks"], theirs["masks"], rtol=0, atol=0.05)
        if "keypoints" in ours:
            assert (ours["keypoints"] - theirs["keypoints"]).abs().max() < 0.5


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_detections_at_any_size(kind, runtime, images):
    if runtime != "torch":
        pytest.importorskip(runtime)
    detector = small_detector(kind)
    before = copy.deepcopy(detector.state_dict())
    fast = optimize(detector, images[:1], runtime)
    assert_same_detections(detect(fast, images), detect(detector, images))
    assert (fast.categories, fast.category_ids) == (detector.categories, detector.category_ids)
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_with_nothing_in_it_has_no_detections(kind, runtime, images):
    if runtime != "torch":
        pytest.importorskip(runtime)
    detector = small_detector(kind)
    best = [found["scores"].max().item() for found in detect(detector, images)]
    detector.roi_heads.score_thresh = (min(best) + max(best)) / 2
    full, empty = images[best.index(max(best))], images[best.index(min(best))]
    expected = detect(detector, [empty])[0]
    assert len(expected["labels"]) == 0
    fast = optimize(detector, [full], runtime)
    assert_same_detections(detect(fast, [full]), detect(detector, [full]))
    found = detect(fast, [empty])[0]
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in expected.items()
    }


@torch.no_grad()
def test_a_folded_pyramid_computes_the_same_with_less(images):
    detector = small_detector("faster_rcnn")
    pyramid = copy.deepcopy(detector.backbone.fpn)
    maps = detector.backbone.body(torch.rand(1, 3, 97, 131))
    choose_forms(detector, images[0], lambda shape, form, inputs: float(form == "dense"))
    fold_pyramid(detector)
    folded = detector.backbone.fpn(maps)
    for (name, ours), (other, theirs) in zip(folded.items(), pyramid(maps).items(), strict=True):
        assert name == other
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    ours, theirs = (total(count(model, maps)).macs_as_run for model in (detector.backbone.fpn, pyramid))
    assert ours < theirs


@pytest.mark.parametrize("frozen", [False, True])
def test_folding_leaves_no_batch_norm_and_the_same_detections(frozen, images):
    detector = small_detector("faster_rcnn")
    if frozen:
        freeze_batch_norms(detector)
    folded = copy.deepcopy(detector)
    fold_batch_norms(folded)
    assert not [module for module in folded.modules() if "BatchNorm" in type(module).__name__]
    assert_same_detections(detect(folded, images), detect(detector, images))


def test_each_layer_gets_the_form_that_the_timer_finds_fastest(images):
    detector = small_detector("faster_rcnn")
    expected = detect(detector, images)
    asked = []

    def timer(shape, form, inputs):
        asked.append((shape, form, inputs))
        return 2.0 if (form == "dense") == (shape[0] == 32) else 1.0  # the neck's and the RPN's stay depthwise

    choose_forms(detector, images[0], timer)
    kept = [name for name, layer in detector.named_modules() if isinstance(layer, DepthwiseCPConv2d)]
    assert not [layer for layer in detector.modules() if isinstance(layer, CPConv2d)]
    assert kept == [*(f"backbone.fpn.layer_blocks.{i}.0" for i in range(4)), "rpn.head.conv.0.0"]
    rpn_sizes = {inputs for shape, _, inputs in asked if shape[:2] == (32, 32)}
    assert len(rpn_sizes) == 5
    assert_same_detections(detect(detector, images), expected)


def test_a_layer_that_meets_several_sizes_gets_the_form_with_the_smallest_sum(images):
    detector = small_detector("faster_rcnn")
    seen = []

    def timer(shape, form, inputs):
        """Dense is a little faster on the largest map of the RPN, and much slower on each of the others."""
        seen.append(inputs[2])
        return (
            {"dense": 0.9, "depthwise": 1.0}[form]
            if inputs[2] == max(seen)
            else {"dense": 2.0, "depthwise": 1.0}[form]
        )

    choose_forms(detector, images[0], timer)
    assert isinstance(detector.rpn.head.conv[0][0], DepthwiseCPConv2d)


def test_what_a_runtime_gets_is_folded_and_in_its_forms(images):
    detector = small_detector("faster_rcnn")
    prepared = optimizing.prepare(detector, images[0], lambda shape, form, inputs: float(form == "dense"))
    kinds = {type(module) for module in prepared.modules()}
    assert not kinds & {nn.BatchNorm2d, CPConv2d} and DepthwiseCPConv2d in kinds
    assert isinstance(prepared.backbone.fpn, fold.FoldedPyramid)
    assert any(isinstance(module, CPConv2d) for module in detector.modules())


def test_a_variance_that_is_small_beside_eps_is_folded_too():
    norm = nn.BatchNorm2d(3, eps=1e-3).eval()
    nn.init.constant_(norm.running_var, 1e-5)
    nn.init.normal_(norm.running_mean)
    x = torch.randn(2, 3, 4, 4)
    scale, shift = fold._affine(norm)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], norm(x))


def test_an_exported_file_resizes_as_evaluation_does():
    spec = DetectorSpec("faster_rcnn", 3, ResNetSpec.dense(0.125), settings=DetectorSettings(min_size=(64, 96)))
    with torch.device("meta"):
        detector = build_from_spec(spec)
    detector.categories, detector.category_ids = ["__background__", "a", "b"], [0, 1, 2]
    described = describe_export(detector)
    assert (described.min_size, described.max_size, described.outputs) == (96, 1333, ("boxes", "labels", "scores"))


@pytest.mark.parametrize(("precision", "hint"), [("float32", "f32"), ("bfloat16", "bf16"), ("int8", "f32")])
def test_openvino_may_run_in_bfloat16_where_that_is_asked_for(precision, hint, monkeypatch):
    core, model = MagicMock(), MagicMock(inputs=[MagicMock(partial_shape=(3, 96, 160))], outputs=["boxes"])
    model.get_rt_info.return_value.astype.return_value = Description(96, 160, ("boxes",), ("a",), (0,)).to_json()
    monkeypatch.setattr(runtimes, "openvino_core", lambda: core)
    compile_openvino(model, precision, "the model")
    assert core.compile_model.call_args.args[2]["INFERENCE_PRECISION_HINT"] == hint


def test_a_treatment_is_its_runtime_in_its_precision(monkeypatch):
    monkeypatch.setattr(treatments, "optimize", lambda detector, images, runtime, precision: f"{runtime} {precision}")
    found = {name: treatments.treated(None, name, []) for name in treatments.OPTIMISED}
    assert found == {name: name if " " in name else f"{name} float32" for name in treatments.OPTIMISED}


def test_bfloat16_finds_much_the_same(images):
    detector = small_detector("faster_rcnn")
    fast = optimize(detector, images, "torch", "bfloat16")
    for ours, theirs in zip(detect(fast, images), detect(detector, images), strict=True):
        assert 0 < abs(ours["scores"].max() - theirs["scores"].max()) < 0.1


@pytest.mark.parametrize("kind", ["mask_rcnn", "keypoint_rcnn"])
def test_int8_quantises_the_convolutions(kind, images):
    """What it costs in AP is measured on trained weights, in docs/benchmarks.md; random ones tell nothing."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    detector = small_detector(kind)
    fold_batch_norms(detector)
    model = quantize(to_openvino(detector, images[0]), detector, images)
    kinds = [operation.get_type_name() for operation in model.get_ops()]
    assert kinds.count("FakeQuantize") > kinds.count("Convolution") > 50
    found = compile_openvino(model, "int8", "the model")(images)
    assert all(torch.isfinite(detections["boxes"]).all() and len(detections["boxes"]) for detections in found)


@pytest.mark.parametrize("kind", ["mask_rcnn", "keypoint_rcnn"])
def test_int8_takes_no_ranges_from_images_with_nothing_in_them(kind, images, monkeypatch):
    pytest.importorskip("openvino")
    nncf = pytest.importorskip("nncf")
    taken = []
    monkeypatch.setattr(nncf, "quantize", lambda model, data, **_: taken.extend(data.get_data()) or model)
    detector = small_detector(kind)
    best = [found["scores"].max().item() for found in detect(detector, images)]
    detector.roi_heads.score_thresh = (min(best) + max(best)) / 2
    full, empty = images[best.index(max(best))], images[best.index(min(best))]
    model = to_openvino(detector, full)
    quantize(model, detector, [empty, full])
    assert [image.tolist() for image in taken] == [detector.transform.resize(full, None)[0].tolist()]
    with pytest.raises(ValueError, match="on these it finds nothing"):
        quantize(model, detector, [empty])


def test_exported_files_are_detectors(tmp_path, images):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    detector = small_detector("mask_rcnn")
    export_onnx(detector, tmp_path / "model.onnx", images[0])
    save_openvino(to_openvino(detector, images[0]), tmp_path / "model.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.onnx", "model.xml"]
    for name in ("model.onnx", "model.xml"):
        exported = load_exported(tmp_path / name)
        assert_same_detections(exported(images), detect(detector, images))
        assert exported.categories == detector.categories


@pytest.mark.parametrize("name", ["damaged.onnx", "damaged.xml", "missing.onnx", "model.txt"])
def test_a_file_that_cannot_be_used_is_named(name, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"<net>no model\0")
    with pytest.raises(ValueError, match=name) as caught:
        load_exported(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def intact(tmp_path_factory, images):
    """model.onnx, and model.xml with its model.bin."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    detector, folder = small_detector("faster_rcnn"), tmp_path_factory.mktemp("exported")
    export_onnx(detector, folder / "model.onnx", images[0])
    save_openvino(to_openvino(detector, images[0]), folder / "model.xml")
    return folder


@pytest.fixture
def exported(intact, tmp_path):
    """A copy of them to be damaged."""
    shutil.copytree(intact, tmp_path, dirs_exist_ok=True)
    return tmp_path


def refused(path):
    with pytest.raises(ValueError, match=rf"^[^\n]*{path.name}: [^\n]+$") as caught:
        load_exported(path)
    return str(caught.value)


@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model.bin"])
@pytest.mark.parametrize("kept", [0, 0.01, 0.5, 0.99])
def test_exported_files_that_are_cut_off_are_refused(name, kept, exported):
    content = (exported / name).read_bytes()
    (exported / name).write_bytes(content[: int(kept * len(content))])
    refused(exported / name.replace(".bin", ".xml"))


def test_an_openvino_file_without_its_weights_is_refused(exported):
    (exported / "model.bin").unlink()
    refused(exported / "model.xml")


ENTITIES = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(12))


@pytest.mark.parametrize(
    "text",
    [
        "<html><body>no network</body></html>",
        "<net>" * 100_000,
        f'<!DOCTYPE net [<!ENTITY e0 "0123456789">{ENTITIES}]><net name="&e12;" version="11"><layers/><edges/></net>',
        '<!DOCTYPE net [<!ENTITY e SYSTEM "secret">]><net name="&e;" version="11"><layers/><edges/></net>',
    ],
    ids=["html", "nested", "entity bomb", "entity of a file"],
)
def test_an_xml_file_that_is_no_network_is_refused(text, tmp_path):
    pytest.importorskip("openvino")
    (tmp_path / "secret").write_text("do not tell")
    (tmp_path / "attack.xml").write_text(f'<?xml version="1.0"?>{text}')
    assert "do not tell" not in refused(tmp_path / "attack.xml")


@pytest.mark.parametrize("described", ["nothing", "wrong types", "another detector"])
def test_networks_of_others_are_refused(described, tmp_path):
    """Valid files of a linear layer, two of which say what only ours say."""
    openvino, onnx = pytest.importorskip("openvino"), pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    torch.onnx.export(nn.Linear(2, 2), (torch.zeros(1, 2),), str(tmp_path / "foreign.onnx"), dynamo=False)
    network = openvino.Core().read_model(tmp_path / "foreign.onnx")
    if described != "nothing":
        detector = describe_export(small_detector("faster_rcnn"))
        text = replace(detector, min_size="[]").to_json() if described == "wrong types" else detector.to_json()
        model = onnx.load(str(tmp_path / "foreign.onnx"))
        model.metadata_props.add(key=METADATA_KEY, value=text)
        onnx.save(model, str(tmp_path / "foreign.onnx"))
        network.set_rt_info(text, [METADATA_KEY])
    save_openvino(network, tmp_path / "foreign.xml")
    told = "its graph is not" if described == "another detector" else "its description of the detector"
    for name in ("foreign.onnx", "foreign.xml"):
        assert told in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runtime": "tensorrt"}, "not one of auto, torch"),
        ({"runtime": "torch", "precision": "int8"}, "torch runs float32, bfloat16, float16, not 'int8'"),
        ({"runtime": "auto", "precision": "int4"}, "precision 'int4'"),
        ({"images": []}, "at least one image"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, message, images):
    with pytest.raises(ValueError, match=message):
        optimize(small_detector("faster_rcnn"), **{"images": images[:1], **arguments})


EVERY = ("onnxruntime", "openvino", "torch")


@pytest.mark.parametrize(
    ("device", "precision", "installed", "chosen"),
    [
        ("cpu", "float32", EVERY, "openvino"),
        ("cpu", "float32", ("torch", "onnxruntime"), "onnxruntime"),
        ("cpu", "float32", ("torch",), "torch"),
        ("cpu", "bfloat16", ("torch", "onnxruntime"), "torch"),
        ("cpu", "int8", EVERY, "openvino"),
        ("cuda", "float32", EVERY, "torch"),
    ],
)
def test_auto_is_the_fastest_runtime_that_can_be_used(device, precision, installed, chosen, monkeypatch):
    monkeypatch.setattr(optimizing.importlib.util, "find_spec", lambda name: name in installed or None)
    assert optimizing._choose_runtime("auto", precision, torch.device(device)) == chosen


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_runtime_that_is_not_installed_is_said(runtime, images, monkeypatch):
    monkeypatch.setattr(optimizing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"{runtime} is not installed: pip install"):
        optimize(small_detector("faster_rcnn"), images[:1], runtime)
