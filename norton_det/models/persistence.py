"""Networks to files and back: what a file must say beside its tensors, and the network that both make."""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torchvision.models import ResNet
from torchvision.models.detection import KeypointRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.files import save_tensors
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.categories import categories_of, keypoints_of, told_categories, told_keypoints
from norton_det.models.channels import DETECTOR_BODY, NORMS
from norton_det.models.fit import fit, read_geometry, set_geometry, set_norm_eps
from norton_det.models.initial import allocate, initialise
from norton_det.models.norms import LEAST_EPS
from norton_det.models.parts import dense_head, regions
from norton_det.models.recognise import describe_structure, read_structure
from norton_det.models.settings import read_settings, write_settings
from norton_det.models.structure import CLASSES, SUPPORTED, Structure, template
from norton_det.models.weights import Weights, has_digest, load_state, naming

log = logging.getLogger(__name__)
_ORDINARY_EPS = 1e-5
OF_STRUCTURE = ("geometry", "norm_eps", "returned_layers", "extra_levels", "tower_groups")
"""What a file tells of a network that is no setting of a detector."""
_EPS_OF_COCO = 0.0
"""Of frozen BatchNorm in torchvision's published R-CNNs and RetinaNet, which their files do not say."""


@dataclass(frozen=True)
class Origin:
    """Where a compressed network comes from, plain types.

    Attributes:
        plan: by which it was compressed, as `CompressionPlan.to_dict` gives it; None: it is dense.
        kept: by channel group, the dense network's channels that it has.
        dense_weights: the file of the dense network.
        widths: by channel group, how many channels the dense network has.
    """

    plan: Mapping[str, Any] | None = None
    kept: Mapping[str, list[int]] = field(default_factory=dict)
    dense_weights: str | None = None
    widths: Mapping[str, int] = field(default_factory=dict)


def origin_of(model: nn.Module) -> Origin:
    """Where a network comes from: its attribute `origin`; a dense one where it has none."""
    origin: Origin = getattr(model, "origin", Origin())
    return origin


def describe(model: nn.Module) -> dict[str, Any]:
    """What rebuilds a network beside its tensors' shapes, and what it knows of itself, plain types.

    Raises ValueError naming the first module that a file could not hold: one that torchvision does not build, or
    another activation, pooling or norm than it does.
    """
    structure = structure_of(model)
    told: dict[str, Any] = {"norm_eps": _norm_eps(model, structure)}
    beside: dict[str, Any] = {}
    if structure.kind:
        told |= describe_structure(model) | read_settings(model)
        beside["categories"], beside["category_ids"] = categories_of(model)
        if "keypoint" in regions(model):
            beside["keypoints"] = asdict(keypoints_of(model))
    elif hasattr(model, "categories"):
        beside["categories"] = model.categories
    with naming(f"a file cannot hold this {type(model).__name__}"):
        rebuilt = rebuild(model.state_dict(), told)
        told["geometry"] = read_geometry(model, rebuilt)
        set_geometry(rebuilt, told["geometry"])
        _compare(model, rebuilt)
    return {"network": told, **beside, **{k: v for k, v in asdict(origin_of(model)).items() if v}}


def structure_of(model: nn.Module) -> Structure:
    """Read the structure of a network in memory. Raises ValueError that says what it is, if it is not supported."""
    if type(model) not in CLASSES:
        raise ValueError(f"a {type(model).__name__} is not supported; supported are {SUPPORTED}")
    if not isinstance(model, ResNet) and not hasattr(model.backbone, "fpn"):
        raise ValueError(f"a detector without a feature pyramid is not supported; supported are {SUPPORTED}")
    return read_structure(model.state_dict(), {} if isinstance(model, ResNet) else describe_structure(model))


def rebuild(state: Mapping[str, torch.Tensor], told: Mapping[str, Any], strict: bool = True) -> nn.Module:
    """Build the network of tensors and of what is told of it, on the meta device.

    Without `strict` layers that have no tensors stay ordinary. Raises ValueError where they make no network.
    """
    structure = read_structure(state, told)
    model = template(structure)
    fit(model, state, strict)
    set_geometry(model, told.get("geometry", {}))
    set_norm_eps(model, DETECTOR_BODY if structure.kind else "", float(told.get("norm_eps", _ORDINARY_EPS)))
    if structure.kind:
        write_settings(model, {name: value for name, value in told.items() if name not in OF_STRUCTURE})
    _check_shapes(model.eval(), structure)
    return model


def model_from_weights(weights: Weights, *, norm_eps: float | None = None, strict: bool = True) -> nn.Module:
    """Load the detector or the classifier that a file holds, in evaluation mode, with its `.categories`.

    A detector whose body's BatchNorm was frozen gets FrozenBatchNorm2d; `norm_eps` is its eps where the file does not
    say it. With `strict` every tensor must be there; otherwise missing ones start randomly and are logged. Raises
    ValueError naming the file and what does not fit.
    """
    is_frozen = weights.is_detector and f"{DETECTOR_BODY}bn1.num_batches_tracked" not in weights.state
    told = dict(weights.told)
    with naming(weights.source):
        if "norm_eps" not in told:
            told["norm_eps"] = _untold_eps(weights, norm_eps) if is_frozen else norm_eps or _ORDINARY_EPS
        eps = told["norm_eps"]
        told["norm_eps"] = float(eps) if is_frozen else max(float(eps), LEAST_EPS)
        model = rebuild(weights.state, told, strict)
    model = allocate(model) if strict else initialise(model)
    load_state(model, weights.state, weights.source, strict)
    loaded: Any = model
    if weights.is_detector:
        loaded.categories, loaded.category_ids = told_categories(weights.metadata, model)
        if "keypoint" in regions(model):
            loaded.keypoints = told_keypoints(weights.metadata.get("keypoints"), model)
    elif isinstance(weights.metadata.get("categories"), list):
        loaded.categories = weights.metadata["categories"]
    loaded.origin = _told_origin(weights.metadata)
    return model.eval()


def detector_from_weights(weights: Weights, *, norm_eps: float | None = None) -> Any:
    """Load a detector, as `model_from_weights`. Raises ValueError for a classifier's file."""
    if not weights.is_detector:
        raise ValueError(f"{weights.source}: holds a ResNet classifier, no detector")
    return model_from_weights(weights, norm_eps=norm_eps)


def resnet_from_weights(weights: Weights, strict: bool = True) -> ResNet:
    """Load a classifier, as `model_from_weights`. Raises ValueError for a detector's file."""
    if weights.is_detector:
        raise ValueError(f"{weights.source}: holds a detector, no ResNet classifier")
    model = model_from_weights(weights, strict=strict)
    assert isinstance(model, ResNet)
    return model


def save_weights(path: Path, model: nn.Module, **beside: Any) -> None:
    """Write a self-describing weights file atomically; `beside` holds further plain types, such as a configuration.

    Raises ValueError as `describe`, and OSError as `save_tensors`.
    """
    save_tensors(path, {"model": model.state_dict(), **describe(model), **beside})


def with_origin(model: nn.Module, origin: Origin) -> nn.Module:
    """Return the network itself, with its origin set."""
    changed: Any = model
    changed.origin = origin
    return model


def _told_origin(metadata: Mapping[str, Any]) -> Origin:
    """What a file says of its origin, as far as that can be."""
    plan, kept, dense, widths = (metadata.get(name) for name in ("plan", "kept", "dense_weights", "widths"))
    return Origin(
        plan if isinstance(plan, Mapping) else None,
        kept if isinstance(kept, Mapping) else {},
        dense if isinstance(dense, str) else None,
        widths if isinstance(widths, Mapping) and all(type(n) is int and n > 0 for n in widths.values()) else {},
    )


def _untold_eps(weights: Weights, given: float | None) -> float:
    """The eps of a frozen BatchNorm that a file does not say; what is taken is told, unless the file is published."""
    kind = weights.structure.kind
    legacy = KeypointRCNN_ResNet50_FPN_Weights.COCO_LEGACY
    is_legacy = kind == "keypoint_rcnn" and has_digest(weights.source, _digest(legacy))
    taken = given if given is not None else _ORDINARY_EPS if kind == "fcos" or is_legacy else _EPS_OF_COCO
    if given is None and not is_legacy:
        told = "%s does not say the eps of its frozen BatchNorm: %g is taken, as torchvision's COCO weights have it"
        log.info(told, weights.source, taken)
    return taken


def _digest(weights: Any) -> str:
    return str(weights.url).removesuffix(".pth").rsplit("-", 1)[1]


def _norm_eps(model: nn.Module, structure: Structure) -> float:
    first = model.get_submodule(f"{DETECTOR_BODY if structure.kind else ''}bn1")
    return float(getattr(first, "eps", _ORDINARY_EPS))


@torch.no_grad()
def _check_shapes(model: Any, structure: Structure) -> None:
    """Run the networks on the meta device, where only shapes are computed; ValueError where they do not fit."""
    image = torch.empty(1, 3, 256, 256, device="meta")  # GroupNorm takes no map of one pixel
    try:
        with _norms_that_pass_on():
            if structure.kind is None:
                model(image)
                return
            levels = model.backbone(image)
            dense_head(model)(list(levels.values()))
            for pooler, head, predictor in regions(model).values():
                predictor(head(image.new_empty(2, model.backbone.out_channels, *pooler.output_size)))
    except RuntimeError as error:
        raise ValueError(f"layers do not fit together: {str(error).splitlines()[0]}") from None
    for kind, region in regions(model).items():
        if unknown := set(region.pooler.featmap_names) - set(levels):
            raise ValueError(f"{kind}_roi_pool reads {sorted(unknown)}, the pyramid has {', '.join(levels)}")
    if len(_anchors(model).sizes) != len(levels):
        raise ValueError(f"anchors of {len(_anchors(model).sizes)} levels, but the pyramid has {len(levels)}")
    check_anchors(model)


@contextmanager
def _norms_that_pass_on() -> Iterator[None]:
    """While it lasts BatchNorm only looks at the number of channels: computing it takes long on the meta device."""

    def look(norm: Any, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != len(norm.weight):
            raise RuntimeError(f"a norm of {len(norm.weight)} channels reads {x.shape[1]}")
        return x

    with patch.object(nn.BatchNorm2d, "forward", look), patch.object(FrozenBatchNorm2d, "forward", look):
        yield


def check_anchors(detector: Any) -> None:
    """Raise ValueError where a detector's anchors are more or fewer boxes at a place than its head predicts."""
    head: Any = dense_head(detector)
    boxes = head.bbox_pred if isinstance(head, RPNHead) else head.regression_head.bbox_reg
    predicted, found = boxes.out_channels // 4, set(_anchors(detector).num_anchors_per_location())
    if found != {predicted}:
        raise ValueError(
            f"anchors of {', '.join(map(str, sorted(found)))} boxes a place, but the head predicts {predicted};"
            " weights that do not say their sizes and aspect ratios can only have torchvision's"
        )


def _anchors(detector: Any) -> Any:
    return detector.rpn.anchor_generator if hasattr(detector, "rpn") else detector.anchor_generator


def _compare(model: nn.Module, rebuilt: nn.Module) -> None:
    """Raise ValueError naming the first module of a network that the rebuilt one has not, or another one."""
    theirs = {name: _signature(module) for name, module in rebuilt.named_modules() if name}
    for name, module in model.named_modules():
        if name and theirs.get(name) != _signature(module):
            expected = theirs.get(name, "nothing of that name")
            raise ValueError(f"{name} is {_signature(module)}, expected {expected}")


def _signature(module: nn.Module) -> str:
    """A module in a line, by what it computes with any weights, but for what the settings say."""
    kind = type(module).__name__
    norm: Any = module
    if isinstance(module, NORMS):
        kind = "BatchNorm" if isinstance(module, nn.modules.batchnorm._BatchNorm) else kind
        return f"{kind}({len(norm.weight)}, eps={norm.eps:g})"
    if isinstance(module, CPConv2d):
        module = copy.copy(module)
        module.form = "depthwise"
    return f"{kind}({module.extra_repr()})"
