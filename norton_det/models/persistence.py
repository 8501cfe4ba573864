"""Writes networks to files and loads them again, from their tensors and from what a file says beside these."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import ResNet

from norton_det.files import save_tensors
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.categories import (
    categories_of,
    keypoints_of,
    published_categories,
    told_categories,
    told_keypoints,
)
from norton_det.models.channels import DETECTOR_BODY, NORMS
from norton_det.models.fit import read_geometry, set_geometry
from norton_det.models.initial import allocate, initialise
from norton_det.models.norms import ORDINARY_EPS
from norton_det.models.parts import regions
from norton_det.models.rebuild import rebuild
from norton_det.models.recognise import structure_of, untold
from norton_det.models.settings import read_settings
from norton_det.models.structure import Structure
from norton_det.models.weights import Weights, load_state, naming

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Tells where a compressed network comes from, in plain types.

    Attributes:
        plan: the plan by which it was compressed, as `CompressionPlan.to_dict` gives it; None: it is dense.
        kept: the dense network's channels that it has, by channel group.
        dense_weights: the file of the dense network.
        widths: how many channels the dense network has, by channel group.
    """

    plan: Mapping[str, Any] | None = None
    kept: Mapping[str, list[int]] = field(default_factory=dict)
    dense_weights: str | None = None
    widths: Mapping[str, int] = field(default_factory=dict)


def dropped_blocks(model: nn.Module) -> tuple[str, ...]:
    """Return the dense network's blocks that a network was compressed without, by their names there."""
    told = (origin_of(model).plan or {}).get("dropped", ())
    return tuple(map(str, told)) if isinstance(told, list | tuple) else ()


def origin_of(model: nn.Module) -> Origin:
    """Return where a network comes from: its attribute `origin`; a dense network's origin where it has none."""
    origin: Origin = getattr(model, "origin", Origin())
    return origin


def describe(model: nn.Module) -> dict[str, Any]:
    """Describe what rebuilds a network beside its tensors' shapes, and what it knows of itself, in plain types.

    Raises ValueError naming the first module that a file could not hold: one that torchvision does not build, or
    another activation, pooling or norm than it does.
    """
    structure = structure_of(model)
    told: dict[str, Any] = {"norm_eps": _norm_eps(model, structure)}
    beside: dict[str, Any] = {}
    if structure.kind:
        told |= untold(structure) | read_settings(model)
        beside["categories"], beside["category_ids"] = categories_of(model)
        if keypoints := keypoints_of(model):
            beside["keypoints"] = asdict(keypoints)
    elif hasattr(model, "categories"):
        beside["categories"] = model.categories
    with naming(f"a file cannot hold this {type(model).__name__}"):
        rebuilt = rebuild(model.state_dict(), told)
        told["geometry"] = read_geometry(model, rebuilt)
        set_geometry(rebuilt, told["geometry"])
        _compare(model, rebuilt)
    return {"network": told, **beside, **{k: v for k, v in asdict(origin_of(model)).items() if v}}


def model_from_weights(weights: Weights, *, norm_eps: float | None = None, strict: bool = True) -> nn.Module:
    """Load the detector or the classifier that a file holds, in evaluation mode, with its `.categories`.

    A detector whose body's BatchNorm was frozen gets FrozenBatchNorm2d; `norm_eps` is its eps where the file does not
    say it. With `strict` every tensor must be there; otherwise missing ones start randomly and are logged. Raises
    ValueError naming the file and what does not fit.
    """
    with naming(weights.source):
        model = rebuild(weights.state, {**weights.told, "norm_eps": weights.norm_eps(norm_eps)}, strict)
    model = allocate(model) if strict else initialise(model)
    load_state(model, weights.state, weights.source, strict)
    loaded: Any = model
    if weights.is_detector:
        told = weights.metadata if "categories" in weights.metadata else published_categories(weights.source)
        loaded.categories, loaded.category_ids = told_categories(told, model)
        if "keypoint" in regions(model):
            loaded.keypoints = told_keypoints(weights.metadata.get("keypoints"), model)
    elif isinstance(weights.metadata.get("categories"), list):
        loaded.categories = weights.metadata["categories"]
    loaded.origin = _told_origin(weights.metadata)
    return model.eval()


def detector_from_weights(weights: Weights, *, norm_eps: float | None = None) -> Any:
    """Load a detector as `model_from_weights` does. Raises ValueError for a classifier's file."""
    if not weights.is_detector:
        raise ValueError(f"{weights.source}: holds a ResNet classifier, no detector")
    return model_from_weights(weights, norm_eps=norm_eps)


def resnet_from_weights(weights: Weights, strict: bool = True) -> ResNet:
    """Load a classifier as `model_from_weights` does. Raises ValueError for a detector's file."""
    if weights.is_detector:
        raise ValueError(f"{weights.source}: holds a detector, no ResNet classifier")
    model = model_from_weights(weights, strict=strict)
    assert isinstance(model, ResNet)
    return model


def save_weights(path: Path, model: nn.Module, **beside: Any) -> None:
    """Write a self-describing weights file atomically; `beside` holds further plain types, such as a configuration.

    Raises ValueError as `describe` does, and OSError as `save_tensors` does.
    """
    save_tensors(path, {"model": model.state_dict(), **describe(model), **beside})


def with_origin(model: nn.Module, origin: Origin) -> nn.Module:
    """Return the network itself, with its origin set."""
    changed: Any = model
    changed.origin = origin
    return model


def _told_origin(metadata: Mapping[str, Any]) -> Origin:
    """Read a file's origin; what is not of the expected type is left out."""
    plan, kept, dense, widths = (metadata.get(name) for name in ("plan", "kept", "dense_weights", "widths"))
    return Origin(
        plan if isinstance(plan, Mapping) else None,
        kept if isinstance(kept, Mapping) else {},
        dense if isinstance(dense, str) else None,
        widths if isinstance(widths, Mapping) and all(type(n) is int and n > 0 for n in widths.values()) else {},
    )


def _norm_eps(model: nn.Module, structure: Structure) -> float:
    first = model.get_submodule(f"{DETECTOR_BODY if structure.kind else ''}bn1")
    return float(getattr(first, "eps", ORDINARY_EPS))


def _compare(model: nn.Module, rebuilt: nn.Module) -> None:
    """Raise ValueError naming the first module of a network that the rebuilt one lacks or has as another."""
    theirs = {name: _signature(module) for name, module in rebuilt.named_modules() if name}
    for name, module in model.named_modules():
        if name and theirs.get(name) != _signature(module):
            expected = theirs.get(name, "nothing of that name")
            raise ValueError(f"{name} is {_signature(module)}, expected {expected}")


def _signature(module: nn.Module) -> str:
    """Describe a module in one line by what it computes with any weights, without what the settings say."""
    kind = type(module).__name__
    norm: Any = module
    if isinstance(module, NORMS):
        kind = "BatchNorm" if isinstance(module, nn.modules.batchnorm._BatchNorm) else kind
        return f"{kind}({len(norm.weight)}, eps={norm.eps:g})"
    if isinstance(module, CPConv2d):
        module = copy.copy(module)
        module.form = "depthwise"
    return f"{kind}({module.extra_repr()})"
