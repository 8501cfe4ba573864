"""Computes a detector's training losses on a batch, with or without a teacher, and names the batch's images."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.engine import distributed
from norton_det.models.bags import pooling_by_bags
from norton_det.models.imitation import Pyramid, pyramid_loss
from norton_det.models.precision import networks_in

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def detection_losses(
    model: nn.Module,
    batch: Batch,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    teacher: Any = None,
    distill_weight: float = 1.0,
) -> dict[str, Tensor]:
    """Compute torchvision's losses of a batch (images, targets); networks run in `precision`, all else in float32.

    The teacher is a detector whose pyramid has as many channels; it is left as it is. It adds one more loss,
    `loss_distillation`: `distill_weight` times `pyramid_loss`, where the teacher sees the same tensor that entered
    the model's backbone.
    """
    images, targets = batch
    detector = distributed.unwrapped(model)
    with networks_in(detector, precision), pooling_by_bags(detector), backbone_passes(detector) as passes:
        losses: dict[str, Tensor] = model(
            [image.to(device) for image in images],
            [{name: value.to(device) for name, value in target.items()} for target in targets],
        )
    if teacher is not None:
        [(normalised, pyramid)] = passes
        with torch.no_grad(), networks_in(teacher, precision):
            wanted = teacher.eval().backbone(normalised)
        losses["loss_distillation"] = distill_weight * pyramid_loss(pyramid, wanted)
    return losses


@contextmanager
def backbone_passes(detector: Any) -> Iterator[list[tuple[Tensor, Pyramid]]]:
    """Record each pass of the detector's backbone inside the context: its input (N, 3, H, W) and its pyramid."""
    passes: list[tuple[Tensor, Pyramid]] = []
    hook = detector.backbone.register_forward_hook(lambda _, inputs, output: passes.append((inputs[0], output)))
    try:
        yield passes
    finally:
        hook.remove()


def image_ids(batch: Batch) -> list[int]:
    """Return the dataset's ids of a batch's images."""
    return [int(target["image_id"]) for target in batch[1]]
