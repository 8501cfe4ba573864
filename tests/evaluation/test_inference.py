"""A detector over a loader: every image once, and nothing left of the evaluation before."""

import time

import pytest
import torch
from detectors import frames, tiny_detector

from norton_det.data.catalog import Categories
from norton_det.deploy.optimize import TorchDetector
from norton_det.evaluation import inference
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.evaluation.inference import run_inference
from norton_det.evaluation.results import to_results
from norton_det.models.settings import write_settings
from norton_det.ops.threads import one_thread


@pytest.mark.parametrize("at_once", [1, 2])
def test_every_image_is_told_once_however_often_it_is_run(at_once, tmp_path):
    def detector(images):
        time.sleep(0.02 * (len(images) - 1))  # the first batch takes longer
        one = {"labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
        return [{**one, "boxes": image.new_tensor([[0, 0, image.mean(), 9]])} for image in images]

    detector.at_once = at_once
    batches = [([torch.full((3, 2, 2), float(id)) for id in ids], [{"image_id": id} for id in ids])
               for ids in ((7, 3), (5,))]  # fmt: skip
    evaluator = CocoEvaluator(tmp_path / "none.json", Categories(("__background__", "a"), (0, 4)), "bbox")
    for _ in range(2):
        assert run_inference(detector, batches, evaluator, torch.device("cpu"), show_progress=False) == [7, 3, 5]
        found = [(result["image_id"], result["bbox"][2]) for result in evaluator.results]
        assert found == [(7, 7), (3, 3), (5, 5)]


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize(("kind", "name"), [("torchvision", "paste_masks_in_image"), ("detectron2", "paste_masks")])
@one_thread()  # another number of threads rounds otherwise
def test_masks_are_made_one_at_a_time_to_the_same_bits(kind, name, at_once, tmp_path, monkeypatch):
    detector, images = tiny_detector("mask_rcnn", "resnet18"), frames(2)
    write_settings(detector, {"images": kind})
    categories = Categories(("__background__", "a", "b"), (0, 4, 9))
    with torch.inference_mode():
        outputs = [detector([image])[0] for image in images]
    expected = [result for id, output in enumerate(outputs) for result in to_results(id, output, categories, "segm")]
    assert len(expected) > 2

    made, original = [], getattr(inference, name)

    def paste(masks, boxes, size):
        made.append(len(masks))
        return original(masks, boxes, size)

    monkeypatch.setattr(inference, name, paste)
    evaluator = CocoEvaluator(tmp_path / "none.json", categories, "segm")
    batches = [([image], [{"image_id": id}]) for id, image in enumerate(images)]
    detector.categories, detector.category_ids = categories.names, categories.ids
    run_inference(TorchDetector(detector, at_once), batches, evaluator, torch.device("cpu"), show_progress=False)
    assert evaluator.results == expected
    assert made == [1] * len(expected)
