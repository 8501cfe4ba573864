"""Runs a detector over images: a loader's, with results for an evaluator, or images without labels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import transform
from torchvision.models.detection.roi_heads import paste_masks_in_image
from tqdm import tqdm

from norton_det.data.catalog import Categories
from norton_det.evaluation.agreement import Findings, collect
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.in_flight import calls_at_once, in_order
from norton_det.models import variants
from norton_det.models.variants import paste_masks
from norton_det.replacing import replaced

Detector = Callable[[list[Tensor]], list[dict[str, Any]]]
Paste = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]


class PastedMasks(Sequence[Tensor]):
    """Pastes an image's masks, (N, 1, H, W) float32, from a head's small ones, each when it is asked for: all masks
    of a photo with many objects would fill the memory."""

    def __init__(self, paste: Paste, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> None:
        self.paste, self.masks, self.boxes, self.size = paste, masks, boxes, size

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, number: Any) -> Any:
        one = slice(number, number + 1)
        return self.paste(self.masks[one], self.boxes[one], self.size)[0]


@contextmanager
def _masks_when_asked_for() -> Iterator[None]:
    """Make detectors' masks `PastedMasks` inside the `with` block."""
    with (
        replaced(transform, "paste_masks_in_image", partial(PastedMasks, paste_masks_in_image)),
        replaced(variants, "paste_masks", partial(PastedMasks, paste_masks)),
    ):
        yield


@torch.inference_mode()
def run_inference(
    detector: Detector,
    loader: Iterable[Any],
    evaluator: CocoEvaluator,
    device: torch.device,
    show_progress: bool = True,
) -> list[int]:
    """Feed all images of `loader` to the detector, its detections to the evaluator; return the image ids."""
    evaluator.reset()
    seen: list[int] = []
    batches = tqdm(loader, desc="evaluate", disable=not show_progress)

    def found(batch: Any) -> tuple[list[dict[str, Any]], Any]:
        images, targets = batch
        return detector([image.to(device) for image in images]), targets

    with _masks_when_asked_for(), closing(in_order(found, batches, calls_at_once(detector))) as results:
        for outputs, targets in results:
            ids = [int(target["image_id"]) for target in targets]
            evaluator.process(ids, outputs)
            seen += ids
    return seen


@torch.inference_mode()
def find(
    detector: Detector, images: Iterable[Tensor], categories: Categories, device: torch.device, name: str = "detect"
) -> Findings:
    """Collect what a detector in evaluation mode finds on images (3, H, W); `name` labels the bar."""

    def found(image: Tensor) -> dict[str, Any]:
        [output] = detector([image.to(device)])
        return output

    bar = tqdm(images, desc=name)
    with _masks_when_asked_for(), closing(in_order(found, bar, calls_at_once(detector))) as outputs:
        return collect(outputs, categories)
