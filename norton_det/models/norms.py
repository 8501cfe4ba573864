"""Swaps BatchNorm's two modules, trainable and frozen, which compute the same in evaluation."""

import logging

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.misc import FrozenBatchNorm2d

log = logging.getLogger(__name__)
ENOUGH_IMAGES = 8
ORDINARY_EPS = 1e-5
"""The eps of torch's BatchNorm, and of torchvision's frozen ones except in the COCO files of R-CNNs and RetinaNet."""
LEAST_EPS = 1e-12
"""The eps of a trainable BatchNorm in the place of 0, which frozen ones have in torchvision's COCO detectors and
torch refuses. In float32 it is still nothing beside a variance above 1e-5."""


def warn_of_small_batches(model: nn.Module, images: int, processes: int) -> None:
    """Log a warning where fewer than 8 images stand behind one BatchNorm: its statistics are noise then.

    Args:
        model: as it is trained.
        images: in a forward pass of one process.
        processes: over which a SyncBatchNorm takes its statistics.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    behind = images * (processes if any(isinstance(norm, nn.SyncBatchNorm) for norm in norms) else 1)
    if norms and behind < ENOUGH_IMAGES:
        log.warning(
            "images behind each BatchNorm: %d, expected at least %d: more images a forward pass,"
            " synchronised statistics or frozen ones train better",
            behind,
            ENOUGH_IMAGES,
        )


def unfreeze_batch_norms(model: nn.Module) -> None:
    """Turn every FrozenBatchNorm2d into a BatchNorm2d that computes the same in evaluation, in place; its eps is at
    least LEAST_EPS."""
    for name, module in list(model.named_modules()):
        if isinstance(module, FrozenBatchNorm2d):
            _replace(model, name, module, nn.BatchNorm2d(len(module.weight), max(module.eps, LEAST_EPS)))


def freeze_batch_norms(model: nn.Module) -> None:
    """Turn every BatchNorm2d into a FrozenBatchNorm2d that computes the same as in evaluation, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            _replace(model, name, module, FrozenBatchNorm2d(module.num_features, eps=module.eps))


def _replace(model: nn.Module, name: str, old: nn.Module, new: nn.Module) -> None:
    weight = old.state_dict()["weight"]
    new.to(weight.device, weight.dtype).load_state_dict(old.state_dict(), strict=False)
    model.set_submodule(name, new.train(old.training))
