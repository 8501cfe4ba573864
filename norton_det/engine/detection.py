"""Training a detector: its losses on a batch, and the names of the batch's images."""

import torch
from torch import Tensor, nn

from norton_det.engine import distributed
from norton_det.models.precision import networks_in

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def detection_losses(
    model: nn.Module, batch: Batch, *, device: torch.device, precision: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """torchvision's losses of a batch of images and targets; its networks run in `precision`, all else in float32."""
    images, targets = batch
    with networks_in(distributed.unwrapped(model), precision):
        losses: dict[str, Tensor] = model(
            [image.to(device) for image in images],
            [{name: value.to(device) for name, value in target.items()} for target in targets],
        )
    return losses


def image_ids(batch: Batch) -> list[int]:
    """The dataset's ids of a batch's images."""
    return [int(target["image_id"]) for target in batch[1]]
