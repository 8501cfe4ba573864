"""COCO's 80 categories among torchvision's 91 labels, and categories in another order."""

import logging

import torch
from detectors import tiny_detector
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from norton_det.builders.categories import evaluated_categories, fit_categories, known_categories
from norton_det.data.catalog import UNUSED, Categories

COCO = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
OF_80 = [name for name in COCO if name not in (UNUSED, "__background__")]


def coco_detector():
    detector = tiny_detector("faster_rcnn", "resnet18", classes=91)
    detector.categories, detector.category_ids = list(COCO), list(range(91))
    return detector


def test_cocos_80_are_found_among_91_labels_without_a_word_of_difference(caplog):
    data = Categories(("__background__", *OF_80), (0, *range(1, 81)))
    seen = evaluated_categories(known_categories(coco_detector()), data, "val.json")
    assert len(seen.names) == 91 and not any("differ" in message for message in caplog.messages)
    assert {id: COCO[label] for id, label in seen.labels.items()} == dict(enumerate(OF_80, start=1))


def test_a_detector_of_91_labels_becomes_one_of_80_with_its_rows(caplog):
    caplog.set_level(logging.INFO)
    detector = coco_detector()
    before = detector.roi_heads.box_predictor.cls_score.weight.detach().clone()
    names = ("__background__", *reversed(OF_80))
    fit_categories(detector, Categories(names, tuple(range(81))), "coco.pth")
    assert caplog.messages == ["coco.pth has the data's categories under other labels: its predictors are rearranged"]
    after = detector.roi_heads.box_predictor.cls_score.weight
    assert torch.equal(after, before[[COCO.index(name) for name in names]])
    assert detector.categories == list(names) and detector.category_ids == list(range(81))
