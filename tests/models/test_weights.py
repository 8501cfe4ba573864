import argparse
import contextlib
import pickle
from urllib.error import URLError

import pytest
import torch
import torchvision
from norton_det.models.detectors import DetectorSpec, build_from_spec
from norton_det.models.resnet import ResNetSpec, build_resnet50
from torchvision.models import resnet50

import norton_det
from norton_det.compression.compress import compress
from norton_det.compression.plan import load_plan
from norton_det.engine.checkpoint import save_weights
from norton_det.models.weights import imagenet_weights, read_weights

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return build_resnet50(ResNetSpec.dense(0.125), num_classes=7).eval()


def published_names(state):
    """A state_dict under the names and shapes of the published checkpoints."""
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if kind == "channel":
            renamed[f"{layer}.feature.pointwise.weight"] = value.flatten(0, 1)[:, :, None, None]
        elif kind == "vertical":
            renamed[f"{layer}.feature.vertical.weight"] = value.flatten(0, 1)[:, None, :, None]
        elif kind == "horizontal":
            renamed[f"{layer}.feature.horizontal.weight"] = value.flatten(0, 1)[:, None, None, :]
        else:
            renamed[f"module.{name}" if layer.startswith("fc") else name] = value
    return renamed


@pytest.mark.parametrize("rank", [1, 3])
def test_published_classifier_with_its_namespace(small, rank, tmp_path):
    compressed, _ = compress(small, load_plan("norton-59", rank))
    path = tmp_path / "published.pt"
    torch.save(
        {
            "state_dict": published_names(compressed.state_dict()),
            "args": argparse.Namespace(arch="resnet_50"),
        },
        path,
    )
    loaded = norton_det.load_resnet50(path).eval()
    torch.testing.assert_close(loaded(IMAGE), compressed.eval()(IMAGE))


def test_published_detector(tmp_path):
    torch.manual_seed(0)
    detector = norton_det.build_detector("faster_rcnn", plan="norton-77").eval()
    path = tmp_path / "published.pth"
    torch.save({"model": published_names(detector.state_dict()), "args": argparse.Namespace(lr=0.02)}, path)
    loaded = norton_det.load_detector(path).eval()
    for name, value in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.categories[1] == "person"


def test_torchvisions_classifier_file(tmp_path):
    torch.manual_seed(0)
    theirs = resnet50().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    torch.testing.assert_close(norton_det.load_resnet50(tmp_path / "resnet50.pth").eval()(IMAGE), theirs(IMAGE))


def test_torchvisions_coco_file_equals_its_builder(tmp_path):
    """Frozen BatchNorm, no word of its eps: the builder of the *_COCO_V1 weights sets it to 0."""
    torch.manual_seed(0)
    theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    from torchvision.models.detection._utils import overwrite_eps

    from norton_det.models.norms import freeze_batch_norms

    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(1e-4, 2)
    freeze_batch_norms(theirs)
    overwrite_eps(theirs, 0.0)
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    ours = norton_det.load_detector(tmp_path / "coco.pth").eval()
    assert ours.backbone.body["bn1"].eps == 0
    torch.testing.assert_close(ours.backbone(IMAGE)["3"], theirs.backbone(IMAGE)["3"])
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in ours.modules())
    assert len(ours.categories) == 91


def test_a_trainable_batch_norm_that_was_saved_with_an_eps_of_0_runs(tmp_path):
    spec = DetectorSpec("faster_rcnn", 3, ResNetSpec.dense(0.125), fpn_channels=16, box_channels=32)
    save_weights(tmp_path / "zero.pth", build_from_spec(spec, eps=0.0))
    loaded = norton_det.load_detector(tmp_path / "zero.pth")
    assert loaded.backbone.body["bn1"].eps == 1e-12
    assert loaded.train().backbone(torch.rand(2, 3, 64, 64))["0"].isfinite().all()


def test_our_detector_brings_everything(tmp_path):
    torch.manual_seed(0)
    detector = norton_det.build_detector("keypoint_rcnn", num_classes=2).eval()
    detector.categories, detector.category_ids = ["__background__", "dog"], [0, 17]
    detector.transform.min_size = (320,)
    detector.roi_heads.detections_per_img = 7
    save_weights(tmp_path / "ours.pth", detector)
    loaded = norton_det.load_detector(tmp_path / "ours.pth").eval()
    assert (loaded.categories, loaded.category_ids) == (["__background__", "dog"], [0, 17])
    assert tuple(loaded.transform.min_size) == (320,)
    assert loaded.roi_heads.detections_per_img == 7


def test_a_detector_without_categories_as_torchvisions_is_saved_too(tmp_path):
    detector = build_from_spec(DetectorSpec("faster_rcnn", 91, ResNetSpec.dense(0.125), fpn_channels=16))
    save_weights(tmp_path / "detector.pth", detector)
    assert norton_det.load_detector(tmp_path / "detector.pth").categories[1] == "person"


@pytest.mark.parametrize(("names", "ids"), [(["__background__", "dog"], [0, 17]), (["__background__"] * 3, [0, 1])])
def test_names_that_are_not_as_many_as_the_classes_are_not_believed(names, ids, tmp_path):
    detector = build_from_spec(DetectorSpec("faster_rcnn", 3, ResNetSpec.dense(0.125), fpn_channels=16))
    detector.categories, detector.category_ids = names, ids
    save_weights(tmp_path / "detector.pth", detector)
    loaded = norton_det.load_detector(tmp_path / "detector.pth")
    assert (loaded.categories, loaded.category_ids) == (["__background__", "class 1", "class 2"], [0, 1, 2])


class Attack:
    """A pickle that would leave a file behind, were it ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
@pytest.mark.parametrize("companion", [{}, {"args": argparse.Namespace(a=1)}])
def test_a_pickle_payload_is_refused_and_does_not_run(tmp_path, writer, companion):
    trace, path = tmp_path / "pwned", tmp_path / "attack.pth"
    content = {"model": {"conv1.weight": torch.ones(1)}, "payload": Attack(trace), **companion}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"payload": Attack(trace)}))
    with pytest.raises(ValueError, match=r"attack\.pth: not a weights file that can be read safely"):
        read_weights(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.pth"):
        read_weights(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no weights file .*nothing\.pth"):
        read_weights(tmp_path / "nothing.pth")


def test_a_partial_file_is_refused_unless_asked(small, tmp_path, caplog):
    state = small.state_dict()
    del state["layer3.1.conv2.weight"]
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match=r"incomplete, missing layer3\.1\.conv2\.weight"):
        norton_det.load_resnet50(tmp_path / "partial.pth")
    loaded = norton_det.load_resnet50(tmp_path / "partial.pth", strict=False)
    assert torch.equal(loaded.layer2[0].conv1.weight, small.layer2[0].conv1.weight)
    assert "layer3.1.conv2.weight" in caplog.text


def test_wrong_shapes_are_named(small, tmp_path):
    state = small.state_dict()
    state["layer1.0.conv2.weight"] = torch.zeros(8, 8, 5, 5)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"do not fit: layer1\.0\.conv2\.weight \(8, 8, 5, 5\) for \(8, 8, 3, 3\)"):
        norton_det.load_resnet50(tmp_path / "wrong.pth")


@pytest.fixture(scope="module")
def detector():
    """A small compressed Mask R-CNN, every part of it."""
    torch.manual_seed(0)
    plan = load_plan("norton-77-all")
    spec = DetectorSpec(
        *("mask_rcnn", 3, plan.apply(ResNetSpec.dense(0.125))),
        fpn_channels=8, box_channels=8, mask_channels=8, part_ranks=plan.parts,
    )  # fmt: skip
    detector = build_from_spec(spec)
    detector.categories, detector.category_ids = ["__background__", "cat", "dog"], [0, 17, 18]
    return detector


TENSORS = (
    *("backbone.body.bn1.weight", "backbone.body.layer1.0.conv1.weight", "backbone.body.layer2.1.conv2.channel"),
    *("backbone.body.layer3.0.bn3.running_var", "backbone.fpn.inner_blocks.0.0.weight", "rpn.head.conv.0.0.channel"),
    *("backbone.fpn.layer_blocks.1.0.vertical", "roi_heads.box_head.fc6.down.weight"),
    *("roi_heads.box_predictor.cls_score.weight", "roi_heads.mask_head.0.0.channel"),
)


@pytest.mark.parametrize("shape", [None, (), (3,), (2, 2, 5, 5)])
@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_missing_or_of_another_shape_is_one_line(name, shape, detector, tmp_path):
    state = detector.state_dict()
    assert name in state
    state = {key: value for key, value in state.items() if key != name or shape is not None}
    path = tmp_path / "foreign.pth"
    torch.save({"model": state | ({} if shape is None else {name: torch.zeros(shape)})}, path)
    with pytest.raises(ValueError, match=r"foreign\.pth: "):
        norton_det.load_detector(path)
    with contextlib.suppress(ValueError):  # a structure that can be read may still not fit
        assert read_weights(path).is_compressed


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(10**12),
        torch.zeros(0, 3),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, 2).to_sparse(),
    ],
    ids=["larger than its file", "empty", "complex", "sparse"],
)
def test_tensors_that_are_not_ordinary_are_refused(value, small, tmp_path):
    torch.save(small.state_dict() | {"bn1.weight": value}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth: holds tensors that are not ordinary numbers: bn1\.weight"):
        read_weights(tmp_path / "odd.pth")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (5, "detector: "),
        ({"min_size": "wide"}, r"detector\.min_size: "),
        ({"min_size": []}, "at least 1"),
        ({"anchor_sizes": [32]}, "one for each of the pyramid's five levels"),
        ({"detections": 1.5}, r"detector\.detections: "),
        ({"norm_eps": "small"}, "small"),
    ],
)
def test_what_a_file_says_of_its_detector_is_checked(told, message, detector, tmp_path):
    torch.save({"model": detector.state_dict(), "detector": told}, tmp_path / "told.pth")
    with pytest.raises(ValueError, match=rf"told\.pth: weights make no network: .*{message}"):
        norton_det.load_detector(tmp_path / "told.pth")


@pytest.mark.parametrize("ids", [[0, 17], ["a", "b", "c"], "abc"])
def test_categories_that_cannot_be_are_replaced_by_numbers(ids, detector, tmp_path):
    told = {"categories": detector.categories, "category_ids": ids}
    torch.save({"model": detector.state_dict(), **told}, tmp_path / "told.pth")
    assert norton_det.load_detector(tmp_path / "told.pth").category_ids == [0, 1, 2]


def test_compressed_weights_are_recognised(small, tmp_path):
    compressed, _ = compress(small, load_plan("[0.2]*20"))
    for name, model in (("dense", small), ("compressed", compressed)):
        torch.save(model.state_dict(), tmp_path / f"{name}.pth")
        assert read_weights(tmp_path / f"{name}.pth").is_compressed == (name == "compressed")


def test_a_missing_network_is_one_line(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=r"cannot be downloaded from https.*model\.backbone_weights=none"):
        imagenet_weights()
