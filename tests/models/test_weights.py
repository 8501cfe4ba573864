import argparse
import contextlib
import pickle
from urllib.error import URLError

import pytest
import torch
from detectors import tiny_classifier, tiny_detector
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

import norton_det
from norton_det.models.fit import set_norm_eps
from norton_det.models.foreign import todays_description
from norton_det.models.parts import PARTS
from norton_det.models.settings import read_settings
from norton_det.models.weights import coco_weights, imagenet_weights, read_weights

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small():
    return tiny_classifier()


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
    compressed, _ = norton_det.compress(small, "norton-59", rank)
    path = tmp_path / "published.pt"
    torch.save(
        {
            "state_dict": published_names(compressed.state_dict()),
            "args": argparse.Namespace(arch="resnet_50"),
        },
        path,
    )
    loaded = norton_det.load_resnet(path).eval()
    torch.testing.assert_close(loaded(IMAGE), compressed.eval()(IMAGE))


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_published_detector(kind, tmp_path):
    detector = tiny_detector(kind, plan="norton-77", classes=91)
    path = tmp_path / "published.pth"
    torch.save({"model": published_names(detector.state_dict()), "args": argparse.Namespace(lr=0.02)}, path)
    loaded = norton_det.load_detector(path)
    for name, value in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.categories[1] == "class 1"  # as many as COCO's, but nobody says that they are


def test_a_trainable_batch_norm_that_was_saved_with_an_eps_of_0_runs(tmp_path):
    detector = tiny_detector("faster_rcnn", "resnet18")
    set_norm_eps(detector, "backbone.body.", 0.0)
    norton_det.save(detector, tmp_path / "zero.pth")
    loaded = norton_det.load_detector(tmp_path / "zero.pth")
    assert loaded.backbone.body["bn1"].eps == 1e-12
    assert loaded.train().backbone(torch.rand(2, 3, 64, 64))["0"].isfinite().all()


def test_our_detector_brings_its_names(tmp_path):
    detector = tiny_detector("fcos", "resnet18", classes=2)
    detector.categories, detector.category_ids = ["__background__", "dog"], [0, 17]
    norton_det.save(detector, tmp_path / "ours.pth")
    loaded = norton_det.load_detector(tmp_path / "ours.pth")
    assert (loaded.categories, loaded.category_ids) == (["__background__", "dog"], [0, 17])
    assert not loaded.training


def test_a_detector_without_categories_as_torchvisions_is_saved_too(tmp_path):
    detector = tiny_detector("retinanet", "resnet18", classes=91)
    del detector.categories, detector.category_ids
    norton_det.save(detector, tmp_path / "detector.pth")
    assert norton_det.load_detector(tmp_path / "detector.pth").categories[1] == "class 1"
    detector.categories = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # as torchvision's words have them
    norton_det.save(detector, tmp_path / "detector.pth")
    named = norton_det.load_detector(tmp_path / "detector.pth")
    assert named.categories[1] == "person" and named.category_ids == list(range(91))


@pytest.mark.parametrize(("names", "ids"), [(["__background__", "dog"], [0, 17]), (["__background__"] * 3, [0, 1])])
def test_names_that_are_not_as_many_as_the_classes_are_not_believed(names, ids, tmp_path):
    detector = tiny_detector("faster_rcnn", "resnet18")
    detector.categories, detector.category_ids = names, ids
    norton_det.save(detector, tmp_path / "detector.pth")
    loaded = norton_det.load_detector(tmp_path / "detector.pth")
    assert (loaded.categories, loaded.category_ids) == (["__background__", "class 1", "class 2"], [0, 1, 2])


def test_a_detector_and_a_classifier_are_not_taken_for_each_other(small, detector, tmp_path):
    norton_det.save(small, tmp_path / "classifier.pth")
    with pytest.raises(ValueError, match=r"classifier\.pth: holds a ResNet classifier, no detector"):
        norton_det.load_detector(tmp_path / "classifier.pth")
    norton_det.save(detector, tmp_path / "detector.pth")
    with pytest.raises(ValueError, match=r"detector\.pth: holds a detector, no ResNet classifier"):
        norton_det.load_resnet(tmp_path / "detector.pth")


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


def test_a_partial_file_is_refused_unless_asked(tmp_path, caplog):
    whole = tiny_classifier("resnet18", width=1.0)
    state = whole.state_dict()
    del state["layer3.1.conv2.weight"], state["fc.weight"], state["fc.bias"]
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match=r"incomplete, missing layer3\.1\.conv2\.weight"):
        norton_det.load_resnet(tmp_path / "partial.pth")
    loaded = norton_det.load_resnet(tmp_path / "partial.pth", strict=False)
    assert torch.equal(loaded.layer2[0].conv1.weight, whole.layer2[0].conv1.weight)
    assert loaded.layer3[1].conv2.weight.std() > 0
    assert loaded.fc.out_features == 1000
    assert "layer3.1.conv2.weight" in caplog.text


def test_wrong_shapes_are_named(small, tmp_path):
    state = small.state_dict()
    state["layer1.0.conv2.weight"] = torch.zeros(8, 8, 5, 5)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"do not fit: layer1\.0\.conv2\.weight \(8, 8, 5, 5\) for \(8, 8, 3, 3\)"):
        norton_det.load_resnet(tmp_path / "wrong.pth")


@pytest.fixture(scope="module")
def detector():
    """A small compressed Mask R-CNN, every part of it."""
    plan = {"notation": "[0.2]*12", "parts": dict.fromkeys(PARTS, 1)}
    detector = tiny_detector("mask_rcnn", "resnet18", plan)
    detector.categories, detector.category_ids = ["__background__", "cat", "dog"], [0, 17, 18]
    return detector


TENSORS = (
    *(
        "backbone.body.bn1.weight",
        "backbone.body.layer3.0.downsample.0.weight",
        "backbone.body.layer2.1.conv2.channel",
    ),
    *("backbone.body.layer3.0.bn2.running_var", "backbone.fpn.inner_blocks.0.0.weight", "rpn.head.conv.0.0.channel"),
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


OLD_DESCRIPTION = {
    **{"min_size": [48, 64], "max_size": 96, "anchor_sizes": [16, 32, 64, 128, 200], "rpn_rois": 99},
    **{"train_proposals": 70, "test_proposals": 40, "box_rois": 33, "score_threshold": 0.01, "detections": 17},
    "norm_eps": 0.0001,
}
"""As files say it whose description stands under `detector`."""


def test_files_of_before_are_described_in_todays_words(detector, tmp_path):
    path = tmp_path / "old.pth"
    origin = {"plan": {"ranks": {"layer1.0.conv1": 1}, "rates": {}, "parts": {}}, "kept": {"layer1": [0]}}
    torch.save(
        {"model": detector.state_dict(), "detector": OLD_DESCRIPTION, **origin, "dense_weights": "a.pth"}, path
    )
    loaded = norton_det.load_detector(path)
    settings = read_settings(loaded)
    assert {name: settings[name] for name in read_settings(detector)} == settings
    assert settings == read_settings(norton_det.build_detector("mask_rcnn", "resnet18", num_classes=3)) | {
        **{"min_size": [48, 64], "max_size": 96, "rpn_batch_size_per_image": 99, "box_batch_size_per_image": 33},
        **{"rpn_pre_nms_top_n_train": 70, "rpn_post_nms_top_n_train": 70},
        **{"rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 40},
        **{"box_score_thresh": 0.01, "box_detections_per_img": 17},
        "rpn_anchor_generator": {
            "sizes": [[16], [32], [64], [128], [200]],
            "aspect_ratios": [[0.5, 1.0, 2.0]] * 5,
        },
    }
    assert loaded.backbone.body["layer4"][0].bn1.eps == 0.0001
    assert (loaded.origin.plan, loaded.origin.kept, loaded.origin.dense_weights) == (*origin.values(), "a.pth")


def test_todays_description_is_left_as_it_is():
    told = {"min_size": [5], "returned_layers": [1, 2]}
    assert todays_description({"network": told, "detector": OLD_DESCRIPTION}) == told
    assert todays_description({"detector": {}}) == todays_description({}) == {}
    assert todays_description({"detector": {"norm_eps": 0.5}}) == {"norm_eps": 0.5}


@pytest.mark.parametrize(
    ("key", "told", "message"),
    [
        ("detector", 5, "network: expected what is told .* by name, got 5"),
        ("detector", {"min_size": "wide"}, "min_size: "),
        ("detector", {"min_size": []}, "at least 1"),
        ("detector", {"anchor_sizes": [32]}, "anchors of 1 levels, but the pyramid has 5"),
        ("detector", {"anchor_sizes": 32}, "."),
        ("detector", {"detections": 1.5}, "box_detections_per_img: .* got 1.5"),
        ("detector", {"norm_eps": "small"}, "small"),
        ("network", [], "network: expected"),
        ("network", {"colour": 1}, "colour: no setting of a MaskRCNN"),
        ("network", {"extra_levels": "p9"}, "."),
        ("network", {"returned_layers": [1, 2]}, "."),
        ("network", {"returned_layers": [4, 3, 2, 1]}, "ascending"),
        ("network", {"returned_layers": [1, 2, 3, 9]}, "1 to 4"),
        ("network", {"returned_layers": "all"}, "."),
        ("network", {"geometry": {"backbone.body.conv1": [[2, 2]]}}, "geometry of backbone.body.conv1: expected"),
        ("network", {"geometry": {"nothing": [[1, 1]] * 3}}, "geometry of nothing: expected"),
        ("network", {"geometry": [1]}, "geometry: expected"),
        ("network", {"box_roi_pool": {"featmap_names": ["7"], "output_size": [7, 7], "sampling_ratio": 2}}, "reads"),
        ("network", {"box_roi_pool": {"featmap_names": ["0"], "output_size": [5, 5], "sampling_ratio": 2}}, "fit"),
        ("network", {"norm_eps": [1]}, "."),
    ],
)
def test_what_a_file_says_of_its_network_is_checked(key, told, message, detector, tmp_path):
    torch.save({"model": detector.state_dict(), key: told}, tmp_path / "told.pth")
    with pytest.raises(ValueError, match=rf"told\.pth: .*{message}") as error:
        norton_det.load_detector(tmp_path / "told.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ids", [[0, 17], ["a", "b", "c"], "abc"])
def test_categories_that_cannot_be_are_replaced_by_numbers(ids, detector, tmp_path):
    told = {"categories": detector.categories, "category_ids": ids}
    torch.save({"model": detector.state_dict(), **told}, tmp_path / "told.pth")
    assert norton_det.load_detector(tmp_path / "told.pth").category_ids == [0, 1, 2]


@pytest.mark.parametrize("plan", ["[0.2]*20", {"notation": "[0.5]*20"}, {"rates": dict.fromkeys(["layer1"], 0.5)}])
def test_compressed_weights_are_recognised(plan, small, tmp_path):
    compressed, _ = norton_det.compress(small, plan)
    for name, model in (("dense", small), ("compressed", compressed)):
        norton_det.save(model, tmp_path / f"{name}.pth")
        assert read_weights(tmp_path / f"{name}.pth").is_compressed == (name == "compressed")


def test_a_missing_network_is_one_line(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=r"cannot be downloaded from https.*model\.backbone_weights=none"):
        imagenet_weights("resnet18")
    with pytest.raises(ValueError, match=r"COCO weights are not in .* make quickstart"):
        coco_weights()
