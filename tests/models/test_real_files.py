"""Every file that torchvision publishes for the supported networks loads, in the names and container that it has."""

import argparse
import copy
import logging
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torchvision
from detectors import frames, tiny_classifier, tiny_detector
from torch import nn
from torchvision.models import get_model_builder, get_model_weights, list_models

import norton_det
from norton_det.models import weights as weights_module
from norton_det.models.norms import freeze_batch_norms
from norton_det.models.persistence import describe
from norton_det.models.settings import write_settings
from norton_det.models.structure import BODIES

UNSUPPORTED = re.compile("mobilenet|ssd")
FILES = {
    # builder and weights: whether names are from before torchvision 0.13, and the eps of BatchNorm, None: trainable
    ("fasterrcnn_resnet50_fpn", "COCO_V1"): (True, 0.0),
    ("maskrcnn_resnet50_fpn", "COCO_V1"): (True, 0.0),
    ("keypointrcnn_resnet50_fpn", "COCO_LEGACY"): (True, 1e-5),
    ("keypointrcnn_resnet50_fpn", "COCO_V1"): (True, 0.0),
    ("retinanet_resnet50_fpn", "COCO_V1"): (True, 0.0),
    ("fasterrcnn_resnet50_fpn_v2", "COCO_V1"): (False, None),
    ("maskrcnn_resnet50_fpn_v2", "COCO_V1"): (False, None),
    ("retinanet_resnet50_fpn_v2", "COCO_V1"): (False, None),
    ("fcos_resnet50_fpn", "COCO_V1"): (True, 1e-5),
}
SHOWN = {"min_size": 64, "max_size": 96}


def published(module):
    """Names of torchvision's builders, and of their weights."""
    names = [name for name in list_models(module) if "resne" in name]
    return {(name, weights.name) for name in names for weights in get_model_weights(name)}


def test_every_published_file_of_a_detector_is_known():
    assert {key for key in published(torchvision.models.detection) if not UNSUPPORTED.search(key[0])} == set(FILES)


def numbers(state, is_frozen):
    """Random tensors of the shapes of a state_dict, as if trained; small variances show another eps."""
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for name, like in state.items():
        values = torch.rand(like.shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            if not is_frozen:
                drawn[name] = torch.tensor(7)
        elif like.ndim > 1:
            drawn[name] = (values - 0.5) * (12 * 1.5 / like[0].numel()) ** 0.5
        elif name.endswith("running_var"):
            drawn[name] = values + 1e-4
        else:
            drawn[name] = values * 0.5 + 0.1 if name.endswith("weight") else values * 0.2 - 0.1
    return drawn


def old_names(state, kind):
    """Names from before torchvision 0.13, from today's."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", name)
        name = re.sub(r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv.", name)
        name = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name)
        if kind == "retinanet":
            name = re.sub(r"_head\.conv\.(\d)\.0\.", lambda m: f"_head.conv.{2 * int(m[1])}.", name)
        renamed[name] = value
    return renamed


@contextmanager
def no_random_numbers():
    """Nothing is drawn for what a file then fills."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"):
            patch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
        yield


@pytest.mark.parametrize(("name", "weights"), FILES)
def test_a_published_detector_gives_what_torchvision_makes_of_its_file(name, weights, tmp_path, monkeypatch, caplog):
    is_old, eps = FILES[name, weights]
    entry = get_model_weights(name)[weights]
    with torch.device("meta"):
        shapes = get_model_builder(name)(
            weights=None, weights_backbone=None, num_classes=len(entry.meta["categories"])
        )
    state = numbers(shapes.state_dict(), eps is not None)
    path = tmp_path / Path(entry.url).name
    if is_old:
        state = old_names(state, name.split("_")[0])
        assert not any("inner_blocks.0.0" in key for key in state)
    torch.save(state, path, _use_new_zipfile_serialization=not is_old)
    if weights == "COCO_LEGACY":
        monkeypatch.setattr(weights_module, "has_digest", lambda path, digest: path.endswith(f"-{digest}.pth"))

    monkeypatch.setattr("norton_det.models.categories.sha256", lambda path: Path(path).stem.rpartition("-")[2])
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: torch.load(path))
    score = "box_score_thresh" if "rcnn" in name else "score_thresh"
    with no_random_numbers():
        theirs = get_model_builder(name)(weights=entry, **SHOWN, **{score: 0.0}).eval()
    with caplog.at_level(logging.INFO):
        ours = norton_det.load_detector(path)
    norms = [module for module in ours.backbone.body.modules() if hasattr(module, "running_var")]
    assert {module.eps for module in norms} == {1e-5 if eps is None else eps}
    assert {isinstance(module, nn.BatchNorm2d) for module in norms} == {eps is None}
    assert ("does not say the eps" in caplog.text) == (eps is not None and weights != "COCO_LEGACY")
    assert ours.categories == ["__background__", *entry.meta["categories"][1:]]

    write_settings(ours, {"min_size": [64], "max_size": 96, score: 0.0})
    with torch.no_grad():
        found, expected = (model(frames(1))[0] for model in (ours, theirs))
    assert len(expected["boxes"]) > 0
    assert {key: torch.equal(found[key], expected[key]) for key in expected} == dict.fromkeys(expected, True)


def test_fcos_in_todays_names_too(tmp_path):
    detector = tiny_detector("fcos", "resnet18")
    for is_old in (False, True):
        state = detector.state_dict()
        torch.save(old_names(state, "fcos") if is_old else state, tmp_path / "fcos.pth")
        loaded = norton_det.load_detector(tmp_path / "fcos.pth").state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize("name", BODIES)
def test_every_published_classifier_is_one_of_the_bodies(name):
    assert {key for key, _ in published(torchvision.models)} == set(BODIES)
    with torch.device("meta"):
        network = get_model_builder(name)()
    describe(network)  # which builds it anew from its tensors' names and shapes, and compares every module


@pytest.mark.parametrize(
    ("name", "counted"), [("resnet18", False), ("resnet50", False), ("resnet50", True), ("resnext50_32x4d", True)]
)
def test_a_published_classifier_gives_what_torchvision_gives(name, counted, tmp_path):
    """The first weights of ResNet-18 to -152 have no `num_batches_tracked`, the second have."""
    with torch.device("meta"):
        network = get_model_builder(name)()
    state = numbers(network.state_dict(), is_frozen=not counted)
    path = tmp_path / "classifier.pth"
    torch.save(state, path, _use_new_zipfile_serialization=counted)
    with no_random_numbers():
        theirs = get_model_builder(name)()
    theirs.load_state_dict(state)
    image = torch.stack(frames(1, 64, 64))
    ours = norton_det.load_resnet(path)
    assert torch.equal(ours(image), theirs.eval()(image))
    assert all(isinstance(module, nn.BatchNorm2d) for module in ours.modules() if hasattr(module, "running_var"))


@pytest.mark.parametrize(("kind", "untold"), [("faster_rcnn", 0.0), ("retinanet", 0.0), ("fcos", 1e-5)])
def test_the_eps_of_frozen_batch_norm_is_what_is_given_or_told(kind, untold, tmp_path, caplog):
    detector = tiny_detector(kind, "resnet18")
    freeze_batch_norms(detector)
    path = tmp_path / "frozen.pth"
    torch.save(detector.state_dict(), path)
    for given, expected, told in ((None, untold, 1), (1e-3, 1e-3, 0), (0.0, 0.0, 0)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            loaded = norton_det.load_detector(path, norm_eps=given)
        assert loaded.backbone.body["layer1"][0].bn1.eps == expected
        assert sum("eps" in record.message for record in caplog.records) == told
    norton_det.save(loaded, path)
    assert norton_det.load_detector(path, norm_eps=1e-3).backbone.body["bn1"].eps == 0.0  # which the file says


WRAPPERS = {
    "bare": lambda state: state,
    "distributed": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "distributed and compiled": lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "torchvision's references": lambda state: {
        "model": state,
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.ones(3)}},
            "param_groups": [{"lr": 0.02, "params": [0]}],
        },
        "lr_scheduler": {"milestones": {16: 1}, "_last_lr": [0.02]},
        "args": argparse.Namespace(model="any", lr=0.02, device="cuda"),
        "epoch": 25,
        "scaler": {"scale": 65536.0},
        "model_ema": {"n_averaged": torch.tensor(3), **{f"module.{n}": value * 0 for n, value in state.items()}},
    },
    "averaged alone": lambda state: {
        "model_ema": {"n_averaged": torch.tensor(3), **{f"module.{n}": value for n, value in state.items()}},
        "epoch": 3,
    },
    "lightning": lambda state: {
        "state_dict": {"loss.weight": torch.ones(4)} | {f"model.{name}": value for name, value in state.items()},
        "pytorch-lightning_version": "2.4",
        "hyper_parameters": {"lr": 0.1},
    },
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {}, "loss": 0.3},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_are_found_in_what_wraps_them(wrapper, tmp_path):
    path = tmp_path / "wrapped.pth"
    for network, load in (
        (tiny_detector("mask_rcnn", "resnet18"), norton_det.load_detector),
        (tiny_classifier("resnet18"), norton_det.load_resnet),
    ):
        torch.save(WRAPPERS[wrapper](network.state_dict()), path)
        loaded = load(path).state_dict()
        assert {
            name: torch.equal(value, loaded[name]) for name, value in network.state_dict().items()
        } == dict.fromkeys(loaded, True)


def test_two_networks_in_a_file_are_refused(tmp_path):
    state = tiny_classifier("resnet18").state_dict()
    both = {f"{who}.{name}": value for who in ("student", "teacher") for name, value in state.items()}
    torch.save(both, tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"holds several networks, under student\., teacher\.: expected one"):
        norton_det.load_resnet(tmp_path / "two.pth")


def fake(names):
    """Small tensors of any names."""
    return {name: torch.ones(2, 2, 3, 3) for name in names}


def timm_resnet50d():
    state = tiny_classifier("resnet50").state_dict()
    stem = {f"conv1.{i}.weight": torch.ones(4, 3 if i == 0 else 4, 3, 3) for i in (0, 3, 6)}
    return {name: value for name, value in state.items() if name != "conv1.weight"} | stem


def quantised():
    return torchvision.models.quantization.resnet18(weights=None, quantize=True).state_dict()


def without_pyramid():
    state = tiny_detector("faster_rcnn", "resnet18").state_dict()
    return {name: value for name, value in state.items() if "fpn" not in name}


STRANGERS = {
    "SSD": (lambda: small("ssd300_vgg16", weights_backbone=None), "an SSD"),
    "SSDlite": (lambda: small("ssdlite320_mobilenet_v3_large", weights_backbone=None), "an SSD"),
    "MobileNet detector": (lambda: small("fasterrcnn_mobilenet_v3_large_fpn", weights_backbone=None), "MobileNet"),
    "MobileNet v2": (lambda: small("mobilenet_v2"), "MobileNet"),
    "MobileNet v3": (lambda: small("mobilenet_v3_small"), "MobileNet"),
    "VGG": (lambda: small("vgg11"), "unknown network|like it"),
    "ViT": (lambda: fake(["class_token", "encoder.layers.encoder_layer_0.ln_1.weight"]), "unknown network.*class_"),
    "Detectron2's": (lambda: fake(["backbone.bottom_up.stem.conv1.weight", "backbone.bottom_up.res2.0.conv1.weight"]),
                     "Detectron2's is not supported: the weights are those of no RetinaNet and no R-CNN"),
    "DETR": (
        lambda: fake(["transformer.encoder.layers.0.linear1.weight", "class_embed.weight", "query_embed.weight",
                      "backbone.0.body.conv1.weight", "backbone.0.body.layer1.0.conv1.weight"]), "a DETR"
    ),
    "YOLO": (lambda: fake(["model.0.conv.weight", "model.1.conv.weight"]), "a YOLO"),
    "resnet50d": (timm_resnet50d, r"not a ResNet.*conv1\.weight is missing"),
    "quantised": (quantised, r"holds quantised tensors: conv1\.weight"),
    "no pyramid": (without_pyramid, "without a feature pyramid"),
    "anything": (lambda: {"weight": torch.ones(3)}, "unknown network, with tensors such as weight"),
}  # fmt: skip


def small(name, **arguments):
    """The names of a network of torchvision's, on tensors of few numbers."""
    with torch.device("meta"):
        shapes = get_model_builder(name)(weights=None, **arguments).state_dict()
    return {key: torch.ones([min(side, 2) for side in value.shape]) for key, value in shapes.items()}


@pytest.mark.parametrize("name", STRANGERS)
def test_files_of_other_networks_are_refused_in_one_line(name, tmp_path):
    make, told = STRANGERS[name]
    path = tmp_path / "foreign.pth"
    torch.save(make(), path)
    with pytest.raises(ValueError, match=told) as error:
        norton_det.load_detector(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert "supported are Faster, Mask and Keypoint R-CNN, RetinaNet and FCOS" in str(error.value)


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(tiny_classifier("resnet18"), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"whole\.pth: not a weights file that can be read safely") as error:
        norton_det.load_resnet(tmp_path / "whole.pth")
    assert "\n" not in str(error.value)


def in_memory():
    detection = torchvision.models.detection
    bare = tiny_detector("faster_rcnn", "resnet18")
    bare = copy.deepcopy(bare)
    bare.backbone = bare.backbone.body
    with torch.device("meta"):
        yield "MobileNet detector", detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)
        yield "SSD", detection.ssd300_vgg16(weights=None, weights_backbone=None)
        yield "MobileNet", torchvision.models.mobilenet_v3_small()
        yield "quantisable", torchvision.models.quantization.resnet18(weights=None)
    yield "no pyramid", bare
    yield "another module", nn.Linear(2, 2)
    yield "wrapped", nn.DataParallel(tiny_classifier("resnet18"))


def test_networks_in_memory_that_are_not_supported_are_refused_in_one_line(tmp_path):
    for _, model in in_memory():
        for refused in (
            lambda model=model: norton_det.save(model, tmp_path / "refused.pth"),
            lambda model=model: norton_det.compress(model, "norton-77"),
        ):
            with pytest.raises(ValueError, match="supported are Faster, Mask and Keypoint R-CNN") as error:
                refused()
            assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
