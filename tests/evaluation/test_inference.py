"""A detector over a loader: every image once, and nothing left of the evaluation before."""

import torch

from norton_det.data.catalog import Categories
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.evaluation.inference import run_inference


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
