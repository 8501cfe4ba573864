"""BatchNorm, trainable or frozen: the same statistics and eps in another module."""

from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d


def unfreeze_batch_norms(model: nn.Module) -> None:
    """Turn every FrozenBatchNorm2d into a BatchNorm2d that computes the same in evaluation, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, FrozenBatchNorm2d):
            _replace(model, name, module, nn.BatchNorm2d(len(module.weight), eps=module.eps))


def freeze_batch_norms(model: nn.Module) -> None:
    """Turn every BatchNorm2d into a FrozenBatchNorm2d that computes the same as in evaluation, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            _replace(model, name, module, FrozenBatchNorm2d(module.num_features, eps=module.eps))


def _replace(model: nn.Module, name: str, old: nn.Module, new: nn.Module) -> None:
    weight = old.state_dict()["weight"]
    new.to(weight.device, weight.dtype).load_state_dict(old.state_dict(), strict=False)
    model.set_submodule(name, new.train(old.training))
