"""Running a detector over a loader, results into an evaluator."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torchvision.models.detection import transform
from torchvision.models.detection.roi_heads import paste_masks_in_image
from tqdm import tqdm

from norton_det.evaluation.coco import CocoEvaluator


class PastedMasks(Sequence[Tensor]):
    """An image's masks, (N, 1, H, W) float32, from the small ones of a head, each made when it is asked for: those of
    a photo with many objects together fill the memory."""

    def __init__(self, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> None:
        self.masks, self.boxes, self.size = masks, boxes, size

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, number: Any) -> Any:
        one = slice(number, number + 1)
        return paste_masks_in_image(self.masks[one], self.boxes[one], self.size)[0]


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
        with patch.object(transform, "paste_masks_in_image", PastedMasks):
            outputs = detector([image.to(device) for image in images])
        ids = [int(target["image_id"]) for target in targets]
        evaluator.process(ids, outputs)
        seen += ids
    return seen
