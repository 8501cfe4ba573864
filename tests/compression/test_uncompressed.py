"""The dense network that a compressed one was made of, built again from what it tells of itself."""

import pytest
import torch
from detectors import ALL_KINDS, frames, tiny_classifier, tiny_detector

import norton_det
from norton_det.compression.building import uncompressed
from norton_det.compression.compress import compress
from norton_det.compression.plan import load_plan
from norton_det.models.channels import read_body
from norton_det.models.norms import unfreeze_batch_norms
from norton_det.models.persistence import Origin, origin_of, with_origin
from norton_det.models.settings import read_settings, write_settings

PARTS = {"neck": 1, "box_head": 4, "rpn": 1, "classification_head": 2}


def shapes(model):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}


def compressed_by(model, rate):
    body = read_body(model)
    notation = f"[{rate}]*{len(body.stages) + len(body.blocks)}"
    return compress(model, load_plan({"notation": notation, "parts": PARTS}, body))[0]


@pytest.mark.parametrize("body", ["resnet18", "resnet50"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_compressed_detector_becomes_the_dense_one_again_after_a_file(kind, body, tmp_path):
    dense = tiny_detector(kind, body, channels=64)
    write_settings(dense, {"image_mean": (0.1, 0.2, 0.3)})
    dense.categories, dense.category_ids = ["__background__", "cat", "dog"], [0, 17, 18]
    norton_det.save(compressed_by(dense, 0.3), tmp_path / "small.pth")
    small = norton_det.load_detector(tmp_path / "small.pth")
    again = uncompressed(small)
    unfreeze_batch_norms(dense)
    assert shapes(again) == shapes(dense) != shapes(small)
    assert read_settings(again) == read_settings(dense)
    assert (again.categories, again.category_ids) == (dense.categories, dense.category_ids)
    assert origin_of(again).plan is None and not again.training
    assert torch.isfinite(again(frames(1))[0]["boxes"]).all()


def test_a_network_that_was_built_compressed_tells_its_dense_widths_too():
    small = tiny_classifier("resnet34", "[0.5]*2+[0.25]*18", width=0.25)
    assert shapes(uncompressed(small)) == shapes(tiny_classifier("resnet34", width=0.25))
    assert origin_of(small).widths["layer4"] == 128 == small.fc.in_features
    assert origin_of(small).widths["layer1"] == 16 == 2 * len(small.bn1.weight)


def test_what_its_dense_one_was_is_not_guessed():
    small = compressed_by(tiny_detector("fcos", channels=64), 0.3)
    told = origin_of(small)
    with_origin(small, Origin(told.plan, told.kept))
    with pytest.raises(ValueError, match="not known how wide the dense network was: nothing tells the channels of"):
        uncompressed(small)


@pytest.mark.parametrize("widths", [5, {"layer1": "64"}, {"layer1": -1}])
def test_widths_that_are_none_are_not_taken(widths, tmp_path):
    small = compressed_by(tiny_detector("faster_rcnn", "resnet18"), 0.3)
    norton_det.save(small, tmp_path / "small.pth")
    content = torch.load(tmp_path / "small.pth", weights_only=True)
    torch.save({**content, "widths": widths}, tmp_path / "odd.pth")
    assert origin_of(norton_det.load_detector(tmp_path / "odd.pth")).widths == {}
