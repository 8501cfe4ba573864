"""A detector over a loader: every image once, and nothing left of the evaluation before."""

import pytest
import torch
from detectors import frames, tiny_detector

from norton_det.data.catalog import Categories
from norton_det.evaluation import inference
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.evaluation.inference import run_inference
from norton_det.evaluation.results import to_results
from norton_det.models.settings import write_settings


def test_every_image_is_told_once_however_often_it_is_run(tmp_path):
    def detector(images):
        one = {"labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
        return [{**one, "boxes": image.new_tensor([[0, 0, image.mean(), 9]])} for image in images]

    batches = [([torch.full((3, 2, 2), float(id)) for id in ids], [{"image_id": id} for id in ids])
               for ids in ((7, 3), (5,))]  # fmt: skip
    evaluator = CocoEvaluator(tmp_path / "none.json", Categories(("__background__", "a"), (0, 4)), "bbox")
    for _ in range(2):
        assert run_inference(detector, batches, evaluator, torch.device("cpu"), show_progress=False) == [7, 3, 5]
        found = [(result["image_id"], result["bbox"][2]) for result in evaluator.results]
        assert found == [(7, 7), (3, 3), (5, 5)]


@pytest.mark.parametrize(("kind", "name"), [("torchvision", "paste_masks_in_image"), ("detectron2", "paste_masks")])
def test_masks_are_made_one_at_a_time_to_the_same_bits(kind, name, tmp_path, monkeypatch):
    detector, images = tiny_detector("mask_rcnn", "resnet18"), frames(2)
    write_settings(detector, {"images": kind})
    categories = Categories(("__background__", "a", "b"), (0, 4, 9))
    with torch.inference_mode():
        outputs = detector(images)
    expected = [result for id, output in enumerate(outputs) for result in to_results(id, output, categories, "segm")]
    assert len(expected) > 2

    made, original = [], getattr(inference, name)

    def paste(masks, boxes, size):
        made.append(len(masks))
        return original(masks, boxes, size)

    monkeypatch.setattr(inference, name, paste)
    evaluator = CocoEvaluator(tmp_path / "none.json", categories, "segm")
    batch = (images, [{"image_id": 0}, {"image_id": 1}])
    run_inference(detector, [batch], evaluator, torch.device("cpu"), show_progress=False)
    assert evaluator.results == expected
    assert made == [1] * len(expected)
