"""Detectron2's detectors find here what they find there, and what is not supported is refused by name.

models/golden/detectron2.json holds what Detectron2 itself found. It was made so: for each of `of_detectron2.GOLDEN`
its `get_cfg()` takes `of_detectron2.config` with FEW and the changes, over the public base files; its widths are set
to those at the head of of_detectron2.py, MODEL.DEVICE to cpu; `build_model` gives the detector, whose `state_dict`
has the names and shapes of `of_detectron2.shapes` and gets the values of `of_detectron2.drawn`. Pictures of each
`size` by `of_detectron2.picture` go through `ResizeShortestEdge` and the model, in BGR or RGB as INPUT.FORMAT says.
Of each is kept: boxes, scores, labels from 1, masks (bits, packed, by zlib in base64), keypoints, and of each level
of the pyramid five values, every (number of values // 5)th.
"""

import base64
import json
import logging
import pickle
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import frames
from of_detectron2 import (
    FEW,
    GOLDEN,
    PUBLIC,
    arrays,
    as_tensor,
    config,
    drawn,
    picture,
    shapes,
    write_config,
    write_pkl,
    write_pth,
)

import norton_det
from norton_det.models.parts import dense_head
from norton_det.models.settings import read_settings

EXPECTED = json.loads((Path(__file__).parent / "golden/detectron2.json").read_text())


def load(folder, family="faster_rcnn", depth=50, changes=None, **kinds):
    write = write_pth if kinds.get("norm") == "BN" else write_pkl
    path = folder / ("model_final.pth" if write is write_pth else "model_final.pkl")
    write(path, family, depth, **kinds)
    return norton_det.load_detector(path, d2_config=write_config(folder / "config.yaml", family, **(changes or {})))


@torch.no_grad()
@pytest.mark.parametrize("name", GOLDEN)
def test_it_finds_what_detectron2_does(name, tmp_path):
    kinds, changes = GOLDEN[name]
    detector = load(tmp_path, changes=FEW | changes, **kinds)
    norton_det.save(detector, tmp_path / "ours.pth")
    again = norton_det.load_detector(tmp_path / "ours.pth")
    for expected in EXPECTED[name]:
        image = as_tensor(picture(*expected["size"]))
        pyramid = detector.backbone(detector.transform([image])[0].tensors).values()
        for level, values in zip(pyramid, expected["pyramid"], strict=True):
            found = level.flatten()[:: max(1, level.numel() // 5)][:5]
            atol = 1e-4 * float(level.abs().max())
            torch.testing.assert_close(found, torch.tensor(values), rtol=0, atol=atol)
        [found] = detector([image])
        found = in_order_of(found, torch.tensor(expected["boxes"]), torch.tensor(expected["labels"]))
        assert found["labels"].tolist() == expected["labels"]
        torch.testing.assert_close(found["boxes"], torch.tensor(expected["boxes"]), rtol=0, atol=1e-2)
        torch.testing.assert_close(found["scores"], torch.tensor(expected["scores"]), rtol=0, atol=1e-4)
        if "masks" in expected:
            packed = np.frombuffer(zlib.decompress(base64.b64decode(expected["masks"])), np.uint8)
            masks = torch.from_numpy(np.unpackbits(packed)[: found["masks"].numel()]).view(found["masks"].shape)
            differ = (found["masks"] >= 0.5) != masks.bool()
            assert masks.bool().any()
            assert (found["masks"][differ] - 0.5).abs().sum() < 1e-3 * max(1, differ.sum())
        if "keypoints" in expected:
            points = torch.tensor(expected["keypoints"])
            torch.testing.assert_close(found["keypoints"][..., :2], points, rtol=0, atol=1e-2)
        [same] = again([image])
        same = in_order_of(same, torch.tensor(expected["boxes"]), torch.tensor(expected["labels"]))
        assert all(torch.equal(same[key], found[key]) for key in found)


def in_order_of(found, boxes, labels):
    """Detections in the order of the expected ones: two of nearly one score may have changed places."""
    apart = (found["boxes"][:, None] - boxes).abs().amax(dim=2) + 1e4 * (found["labels"][:, None] != labels)
    order = apart.argmin(dim=0)
    assert sorted(order.tolist()) == list(range(len(found["boxes"])))
    return {key: values[order] for key, values in found.items()}


def test_the_golden_pictures_show_several_classes():
    assert len({label for name in GOLDEN for entry in EXPECTED[name] for label in entry["labels"]}) > 2
    assert set(EXPECTED) == set(GOLDEN)


def test_without_a_configuration_the_zoos_settings_are_taken_and_told(tmp_path, caplog):
    write_pkl(tmp_path / "model_final_b275ba.pkl", classes=80)
    with caplog.at_level(logging.INFO):
        detector = norton_det.load_detector(tmp_path / "model_final_b275ba.pkl")
    assert "are those of Detectron2's model zoo: --d2-config tells others" in caplog.text
    settings = read_settings(detector)
    assert (settings["min_size"][-1], settings["max_size"]) == (800, 1333)
    np.testing.assert_allclose(np.array(settings["image_mean"]) * 255, [123.675, 116.28, 103.53])
    assert settings["image_std"] == [1 / 255] * 3
    assert settings["box_roi_pool"]["aligned"]
    assert detector.backbone.body.layer3[0].conv1.stride == (2, 2)
    assert detector.categories[:3] == ["__background__", "person", "bicycle"]
    assert (detector.categories[-1], detector.category_ids[-1], detector.category_ids[12]) == ("toothbrush", 90, 13)


def test_a_detector_of_people_is_named(tmp_path):
    write_pkl(tmp_path / "people.pkl", "keypoint_rcnn", keypoints=17)
    detector = norton_det.load_detector(tmp_path / "people.pkl")
    assert (detector.categories, detector.category_ids) == (["__background__", "person"], [0, 1])
    assert detector.keypoints.names[0] == "nose"


@pytest.mark.parametrize(
    ("content", "names", "ids"),
    [
        (["a", "b", "c", "d", "e"], ["a", "b", "c", "d", "e"], [1, 2, 3, 4, 5]),
        ({"categories": [{"id": i, "name": f"n{i}"} for i in (9, 2, 7, 4, 5)]}, ["n2", "n4", "n5", "n7", "n9"],
         [2, 4, 5, 7, 9]),
    ],
)  # fmt: skip
def test_categories_of_ones_own_are_read_from_json(content, names, ids, tmp_path):
    write_pkl(tmp_path / "own.pkl")
    (tmp_path / "names.json").write_text(json.dumps(content))
    detector = norton_det.load_detector(tmp_path / "own.pkl", categories=tmp_path / "names.json")
    assert (detector.categories[1:], detector.category_ids[1:]) == (names, ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["a", "b"]', r"names\.json: 2 categories, but .*own\.pkl tells 5 apart"),
        ('{"categories": [{"id": "x", "name": "a"}]}', r"names\.json: expected a list of names"),
        ("[1, 2]", r"names\.json: expected a list of names"),
        ("[", r"names\.json: not a JSON file"),
    ],
)
def test_categories_that_cannot_be_meant_are_refused(text, message, tmp_path):
    write_pkl(tmp_path / "own.pkl")
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        norton_det.load_detector(tmp_path / "own.pkl", categories=tmp_path / "names.json")


def with_layers(**renamed):
    """A Faster R-CNN's arrays, and such of other layers."""
    return {**arrays(), **{name: drawn(name, shape) for name, shape in renamed.items()}}


def replaced(old, new):
    return {re.sub(old, new, name): values for name, values in arrays().items()}


REFUSED = {
    "deformable": with_layers(**{"backbone.bottom_up.res3.0.conv2_offset.weight": (18, 8, 3, 3)}),
    "Cascade R-CNN": replaced(r"roi_heads\.box_predictor\.", "roi_heads.box_predictor.0."),
    "panoptic": with_layers(**{"sem_seg_head.predictor.weight": (54, 8, 1, 1)}),
    "kind C4": {**replaced(r"backbone\.bottom_up\.", "backbone."), "roi_heads.res5.0.conv1.weight": np.ones(1)},
    "kind DC5": replaced(r"backbone\.bottom_up\.", "backbone."),
    "GroupNorm": {name: values for name, values in arrays().items() if not name.endswith("running_mean")},
    "PointRend": with_layers(**{"roi_heads.mask_head.point_head.fc1.weight": (8, 8, 1)}),
    "no ResNet of its own": replaced(r"bottom_up\.stem\.conv1\.", "bottom_up.patch_embed.proj."),
    "its own proposals": {name: v for name, v in arrays().items() if not name.startswith("proposal_generator")},
    "no R-CNN": {name: v for name, v in arrays().items() if not name.startswith("roi_heads")},
    "layer roi_heads.wings": with_layers(**{"roi_heads.wings.weight": (8, 8)}),
    "ResNeXt": with_layers(**{"backbone.bottom_up.res2.0.conv2.weight": (8, 2, 3, 3)}),
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_not_supported_is_refused_by_name(named, tmp_path):
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"model": REFUSED[named], "__author__": "nobody"}))
    with pytest.raises(ValueError, match=rf"^[^\n]*other\.pkl: [^\n]*{named}[^\n]*$"):
        norton_det.load_detector(tmp_path / "other.pkl")


@pytest.mark.parametrize("content", [{"blobs": {}}, {"model": 3}, [1]])
def test_a_pickle_of_something_else_is_refused(content, tmp_path):
    (tmp_path / "other.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"other\.pkl: expected a \.pkl of Detectron2's"):
        norton_det.load_detector(tmp_path / "other.pkl")


def test_a_configuration_for_a_detector_of_another_kind_is_refused(tmp_path):
    norton_det.save(norton_det.build_detector("faster_rcnn", "resnet18", width=0.125), tmp_path / "ours.pth")
    with pytest.raises(ValueError, match=r"ours\.pth: no detector of Detectron2's, which .*config\.yaml"):
        norton_det.load_detector(tmp_path / "ours.pth", d2_config=write_config(tmp_path / "config.yaml"))


def test_agnostic_boxes_and_masks_are_those_of_every_class(tmp_path):
    heads = load(tmp_path, "mask_rcnn", agnostic=True).roi_heads
    boxes = heads.box_predictor.bbox_pred.weight.view(6, 4, -1)
    masks = heads.mask_predictor.mask_fcn_logits.weight
    for layer in (boxes, masks):
        assert torch.equal(layer[0], torch.zeros_like(layer[0]))
        assert all(torch.equal(layer[label], layer[1]) for label in range(1, 6))


@torch.no_grad()
def test_no_box_of_a_retinanet_is_background(tmp_path):
    detector = load(tmp_path, "retinanet", changes={"MODEL__RETINANET__SCORE_THRESH_TEST": 0.0})
    assert 0 not in detector(frames())[0]["labels"]


@pytest.mark.parametrize("family", PUBLIC)
def test_it_can_be_trained(family, tmp_path):
    detector = load(tmp_path, family).train()
    detector.requires_grad_(True)
    target = {
        "boxes": torch.tensor([[20.0, 20, 90, 75], [5, 10, 30, 60]]),
        "labels": torch.ones(2, dtype=torch.int64),
        "masks": torch.ones(2, 97, 131, dtype=torch.uint8),
        "keypoints": torch.tensor([[[40.0, 40.0, 1.0]], [[20, 20, 1]]]).repeat(1, 7, 1),
    }
    torch.manual_seed(0)
    losses = detector([as_tensor(picture(97, 131))], [target])
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert all(
        layer.weight.grad.abs().sum() > 0 for layer in dense_head(detector).modules() if hasattr(layer, "weight")
    )


def test_batch_norm_of_ones_own_training_stays_trainable(tmp_path):
    assert isinstance(load(tmp_path, depth=18, norm="BN").backbone.body.bn1, torch.nn.BatchNorm2d)


def test_shapes_are_those_of_a_detector_that_is_whole():
    """A guard of this file's own rule: a stage has as many blocks as its ResNet, and every layer a norm or a bias."""
    names = set(shapes(depth=101))
    assert sum(name.endswith("conv1.weight") and ".res4." in name for name in names) == 23
    for name in names:
        if name.endswith(".weight") and not name.endswith("norm.weight"):
            assert {name.replace(".weight", ".bias"), name.replace(".weight", ".norm.weight")} & names


def test_the_base_of_a_family_is_public():
    assert {config(family)["_BASE_"].removeprefix("../") for family in PUBLIC} == set(PUBLIC.values())
