"""Reading weights safely: torchvision's files and enums, the published NORTON checkpoints, and our own."""

import argparse
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet50_Weights
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from norton_det.files import load_tensors
from norton_det.models.detectors import BODY, DetectorSettings, DetectorSpec, build_from_spec
from norton_det.models.norms import LEAST_EPS, freeze_batch_norms
from norton_det.models.resnet import ResNetSpec, build_resnet50

log = logging.getLogger(__name__)
_TORCHVISION_EPS = 0.0
"""The eps of FrozenBatchNorm in torchvision's COCO_V1 detectors, which their files do not say."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name under torchvision's module names (CP layers under ours), and what the file says beside."""

    source: str
    state: dict[str, Tensor]
    metadata: dict[str, Any]

    @property
    def is_detector(self) -> bool:
        """Whether these are a detector's weights, not a classifier's."""
        return any(key.startswith("roi_heads.") for key in self.state)

    @property
    def is_compressed(self) -> bool:
        """Whether the structure differs from an ordinary one: factorised layers or pruned channels."""
        parts: Mapping[str, int] = {}
        with _naming(self.source):
            if self.is_detector:
                detector = DetectorSpec.from_state_dict(self.state)
                spec, parts = detector.body, detector.part_ranks
            else:
                spec = ResNetSpec.from_state_dict(self.state)
        dense_widths = ResNetSpec.dense(spec.widths["layer4"] / 2048).widths
        return bool(spec.ranks or parts) or spec.widths != dense_widths


def read_weights(path: str | Path) -> Weights:
    """Read a weights file without ever running code from it.

    Besides tensors and plain types only `argparse.Namespace` is let through, which the published checkpoints hold.
    Raises ValueError naming the file where it is missing, damaged, or holds anything else.
    """
    if not Path(path).is_file():
        raise ValueError(f"no weights file {str(path)!r}")
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = load_tensors(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dictionary of tensors, got a {type(content).__name__}")
    key = next((key for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), None)
    tensors = content if key is None else content[key]
    state = {_our_name(str(name)): value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path}: holds no weights")
    if odd := [name for name, tensor in state.items() if not _is_ordinary(tensor)]:
        raise ValueError(f"{path}: holds tensors that are not ordinary numbers: {_some(odd)}")
    metadata = {} if key is None else {str(k): v for k, v in content.items() if k != key}
    with _naming(path):
        return Weights(str(path), _with_cp_shapes(state), metadata)


def _is_ordinary(tensor: Tensor) -> bool:
    """Whether it is dense, real, not empty, and as large as it says: a few bytes may claim any number of values."""
    if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized:
        return False
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


@contextmanager
def _naming(source: str | Path) -> Iterator[None]:
    """Whatever tensors raise that make no network becomes a ValueError that names their file."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{source}: weights are incomplete, missing {error.args[0]}") from None
    except (ValueError, IndexError, TypeError, RuntimeError) as error:
        raise ValueError(f"{source}: weights make no network: {error}") from None


def read_dense_weights(path: str | Path) -> Weights:
    """`read_weights` of what is still to be compressed. Raises ValueError for weights that are."""
    weights = read_weights(path)
    if weights.is_compressed:
        raise ValueError(f"{path} is compressed already")
    return weights


def weights_name(path: str | Path) -> str:
    """What the weights of a file are called: a run's model_final.pth by its folder, another file by its own name."""
    path = Path(path).resolve()
    return path.parent.name if path.stem == "model_final" else path.stem


def imagenet_weights() -> Weights:
    """torchvision's ImageNet ResNet-50, downloaded once into torch's own cache.

    Raises ValueError that names the address and the way on where there is no network.
    """
    way_on = "put the file there, give another, model.backbone_weights=FILE, or none: model.backbone_weights=none"
    return _downloaded(ResNet50_Weights.IMAGENET1K_V1, "ImageNet weights", way_on)


def coco_weights() -> Weights:
    """torchvision's COCO Faster R-CNN, downloaded and refused as `imagenet_weights`."""
    way_on = "put the file there, or train a small detector on drawn data: make quickstart"
    return _downloaded(FasterRCNN_ResNet50_FPN_Weights.COCO_V1, "COCO weights", way_on)


def _downloaded(weights: Any, name: str, way_on: str) -> Weights:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{name} are not in {cached.parent} and cannot be downloaded from {weights.url} ({error}); {way_on}"
        ) from None
    return Weights(str(cached), dict(state), {})


def resnet50_from_weights(weights: Weights, strict: bool = True) -> ResNet:
    """A ResNet-50 of the structure that the tensor shapes tell, with its weights.

    With `strict` every tensor must be there; otherwise missing ones keep their random start and are logged.
    Raises ValueError naming what is missing, unknown or of the wrong shape.
    """
    state = weights.state
    if weights.is_detector:
        raise ValueError(f"{weights.source}: holds a detector, not a ResNet-50")
    with _naming(weights.source):
        classes = len(state["fc.bias"]) if "fc.bias" in state else 1000
        network = build_resnet50(ResNetSpec.from_state_dict(state), classes)
    load_state(network, state, weights.source, strict)
    return network


def model_from_weights(weights: Weights) -> GeneralizedRCNN | ResNet:
    """The detector or the classifier that a file holds. Raises ValueError where it does not fit."""
    return detector_from_weights(weights) if weights.is_detector else resnet50_from_weights(weights)


def detector_from_weights(weights: Weights, settings: DetectorSettings | None = None) -> GeneralizedRCNN:
    """A detector of the structure that the tensor shapes tell, with its weights, `.categories` and
    `.category_ids`.

    `settings` replace the ones that the file says. A file whose BatchNorm was frozen gets FrozenBatchNorm2d.
    Raises ValueError where the file does not fit.
    """
    if not weights.is_detector:
        raise ValueError(f"{weights.source}: holds no detector")
    frozen = f"{BODY}bn1.num_batches_tracked" not in weights.state
    described = weights.metadata.get("detector", {})
    with _naming(weights.source):
        own = _settings(described)
        eps = float(described.get("norm_eps", _TORCHVISION_EPS if frozen else 1e-5))
        spec = DetectorSpec.from_state_dict(weights.state, settings or own)
        detector = build_from_spec(spec, eps if frozen else max(eps, LEAST_EPS))
    load_state(detector, weights.state, weights.source)
    if frozen:
        freeze_batch_norms(detector)
    detector.categories, detector.category_ids = _categories(weights.metadata, spec.num_classes)
    return detector


def default_categories(num_classes: int) -> tuple[list[str], list[int]]:
    """Names and ids where a file says nothing: torchvision's for COCO (91 classes, or 2 for people), else numbers.

    `num_classes` counts the background, which comes first.

    Examples:
        >>> default_categories(3)
        (['__background__', 'class 1', 'class 2'], [0, 1, 2])
    """
    coco = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if num_classes in (2, len(coco)):
        names = list(coco[:num_classes])
    else:
        names = ["__background__", *(f"class {i}" for i in range(1, num_classes))]
    return names, list(range(num_classes))


def categories_of(detector: GeneralizedRCNN) -> tuple[list[str], list[int]]:
    """A detector's names and ids by label; torchvision's own has none, and gets `default_categories`."""
    if hasattr(detector, "categories"):
        return list(detector.categories), list(detector.category_ids)
    return default_categories(detector.roi_heads.box_predictor.cls_score.out_features)


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str, strict: bool = True) -> None:
    """Copy tensors into a model. Raises ValueError naming the tensors that are missing, unknown or do not fit;
    without `strict` missing ones are only logged."""
    own = model.state_dict()
    wrong = [
        f"{k} {tuple(v.shape)} for {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and v.shape != own[k].shape
    ]
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    missing = [key for key in own if key not in state and key not in counters]
    unknown = [key for key in state if key not in own and not key.endswith("num_batches_tracked")]
    if wrong or unknown:
        raise ValueError(f"{source}: weights do not fit: {_some(wrong or unknown)}")
    if missing and strict:
        raise ValueError(f"{source}: weights are incomplete, missing {_some(missing)}")
    if missing:
        log.warning("%s: random weights for what it lacks: %s", source, ", ".join(missing))
    model.load_state_dict({**own, **{key: value for key, value in state.items() if key in own}})


def _some(names: list[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _our_name(name: str) -> str:
    """From the published names of CP layers (and DataParallel's prefix) to ours."""
    name = name.removeprefix("module.")
    return (
        name.replace(".feature.pointwise.weight", ".channel")
        .replace(".feature.vertical.weight", ".vertical")
        .replace(".feature.horizontal.weight", ".horizontal")
    )


def _with_cp_shapes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published factors are convolution weights, from (R*K, C, 1, 1) to (R, K, C) and so on."""
    for name, value in list(state.items()):
        if value.ndim == 4 and name.rsplit(".", 1)[-1] in ("channel", "vertical", "horizontal"):
            filters = len(state[name.rsplit(".", 1)[0].replace("conv", "bn") + ".weight"])
            state[name] = value.reshape(len(value) // filters, filters, -1)
    return state


def _settings(described: Any) -> DetectorSettings:
    try:
        return TypeAdapter(DetectorSettings).validate_python(described)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("detector", *first["loc"])))
        raise ValueError(f"{where}: {first['msg']}") from None


def _categories(metadata: Mapping[str, Any], num_classes: int) -> tuple[list[str], list[int]]:
    names, ids = metadata.get("categories"), metadata.get("category_ids")
    if (
        isinstance(names, list)
        and isinstance(ids, list)
        and len(names) == len(ids) == num_classes
        and all(isinstance(name, str) for name in names)
        and all(isinstance(id, int) for id in ids)
    ):
        return list(names), list(ids)
    return default_categories(num_classes)
