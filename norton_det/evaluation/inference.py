"""Running a detector over a loader, results into an evaluator."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from norton_det.evaluation.coco import CocoEvaluator


@torch.inference_mode()
def run_inference(
    detector: Callable[[list[Tensor]], list[dict[str, Tensor]]],
    loader: Iterable[Any],
    evaluator: CocoEvaluator,
    device: torch.device,
    show_progress: bool = True,
) -> list[int]:
    """Feed every image of `loader` to the detector and its detections to the evaluator; returns the image ids."""
    evaluator.reset()
    seen: list[int] = []
    for images, targets in tqdm(loader, desc="evaluate", disable=not show_progress):
        outputs = detector([image.to(device) for image in images])
        ids = [int(target["image_id"]) for target in targets]
        evaluator.process(ids, outputs)
        seen += ids
    return seen
