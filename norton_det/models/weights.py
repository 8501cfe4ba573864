"""Reads weights from files without running anything of them, or downloads them."""

import argparse
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, KeypointRCNN_ResNet50_FPN_Weights

from norton_det.files import load_tensors, sha256
from norton_det.models.arrays import load_arrays
from norton_det.models.categories import categories_from_file
from norton_det.models.channels import DETECTOR_BODY
from norton_det.models.detectron2 import convert, is_detectron2
from norton_det.models.foreign import find_weights, todays_description, todays_names
from norton_det.models.norms import LEAST_EPS, ORDINARY_EPS
from norton_det.models.recognise import read_structure
from norton_det.models.structure import SUPPORTED, Structure
from norton_det.names import some

log = logging.getLogger(__name__)
MOST_TOLD = 4
"""How many names of tensors one message lists."""
_EPS_OF_COCO = 0.0
"""The eps of frozen BatchNorm in torchvision's published R-CNNs and RetinaNet, which their files do not say."""


@dataclass(frozen=True)
class Weights:
    """Holds tensors by name (torchvision's module names, ours for CP layers), and what the file says beside."""

    source: str
    state: dict[str, Tensor]
    metadata: dict[str, Any]

    @cached_property
    def told(self) -> dict[str, Any]:
        """Return what the file says of its network beside the tensors, in the words of today."""
        with naming(self.source):
            return todays_description(self.metadata)

    @cached_property
    def structure(self) -> Structure:
        """Return the modules that the tensors belong to. Raises ValueError naming the file of any other network."""
        with naming(self.source):
            return read_structure(self.state, self.told)

    @property
    def is_detector(self) -> bool:
        """Tell whether these are a detector's weights, not a classifier's."""
        return self.structure.kind is not None

    def norm_eps(self, given: float | None) -> float:
        """Return the eps of the body's BatchNorm: what the file says, else `given`, else what torchvision's files of
        this kind mean; that guess is logged."""
        is_frozen = self.is_detector and f"{DETECTOR_BODY}bn1.num_batches_tracked" not in self.state
        if is_frozen and "norm_eps" not in self.told and given is None:
            return self._published_eps()
        eps = float(self.told.get("norm_eps", ORDINARY_EPS if given is None else given))
        return eps if is_frozen else max(eps, LEAST_EPS)

    def _published_eps(self) -> float:
        legacy = KeypointRCNN_ResNet50_FPN_Weights.COCO_LEGACY
        if self.structure.kind == "keypoint_rcnn" and has_digest(self.source, _digest(legacy)):
            return ORDINARY_EPS
        eps = ORDINARY_EPS if self.structure.kind == "fcos" else _EPS_OF_COCO
        told = "%s does not say the eps of its frozen BatchNorm: %g is taken, as torchvision's COCO weights have it"
        log.info(told, self.source, eps)
        return eps

    @property
    def is_compressed(self) -> bool:
        """Tell whether layers are factorised, or the file says by which plan it was compressed."""
        factorised = any(name.endswith((".channel", ".down.weight")) for name in self.state)
        return factorised or self.metadata.get("plan") is not None


def read_weights(
    path: str | Path, d2_config: str | Path | None = None, categories: str | Path | None = None
) -> Weights:
    """Read a weights file without ever running code from it.

    Besides tensors and plain types it lets through only `argparse.Namespace`, which the published checkpoints hold,
    and in a `.pkl` NumPy's arrays. `d2_config` is the YAML file of a detector of Detectron2's, `categories` a JSON
    file that names what a detector finds, as `categories_from_file` takes it. Raises ValueError naming the file where
    it is missing or damaged, or holds anything else or a network that is not supported.
    """
    if not Path(path).is_file():
        raise ValueError(f"no weights file {str(path)!r}")
    content = _read_content(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dictionary of tensors, got a {type(content).__name__}")
    with naming(path):
        state, metadata = find_weights(content)
        if not state:
            raise ValueError("holds no weights")
        if odd := [name for name, tensor in state.items() if not _is_ordinary(tensor)]:
            what = "quantised tensors" if state[odd[0]].is_quantized else "tensors that are not ordinary numbers"
            raise ValueError(f"holds {what}: {some(odd, MOST_TOLD)}; supported are {SUPPORTED}")
        if is_detectron2(state):
            state, metadata = convert(state, Path(d2_config) if d2_config else None, str(path))
        elif d2_config:
            raise ValueError(f"no detector of Detectron2's, which {d2_config} is for")
        if categories:
            metadata = {**metadata, **categories_from_file(categories)}
        weights = Weights(str(path), todays_names(state), metadata)
    if categories and weights.structure.classes != len(metadata["categories"]):
        told, own = len(metadata["categories"]) - 1, weights.structure.classes - 1
        raise ValueError(f"{categories}: {told} categories, but {path} tells {own} apart")
    _ = weights.structure
    return weights


def _read_content(path: str | Path) -> Any:
    if Path(path).suffix == ".pkl":
        content = load_arrays(path)
        if isinstance(content, dict) and isinstance(content.get("model"), dict):
            arrays = {str(name): value for name, value in content["model"].items() if isinstance(value, np.ndarray)}
            return {**content, "model": {name: torch.from_numpy(value) for name, value in arrays.items()}}
        raise ValueError(f"{path}: expected a .pkl of Detectron2's, which has its arrays under 'model'")
    with torch.serialization.safe_globals([argparse.Namespace]):
        return load_tensors(path)


def _is_ordinary(tensor: Tensor) -> bool:
    """Tell whether it is dense, real, not empty, and of its claimed size: a few bytes may claim any size."""
    if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized:
        return False
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


@contextmanager
def naming(source: str | Path) -> Iterator[None]:
    """Turn errors that tensors raise inside the `with` block into one ValueError that names the file."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{source}: weights are incomplete, missing {error.args[0]}") from None
    except (ValueError, IndexError, TypeError, RuntimeError) as error:
        told = str(error)
        raise ValueError(told if told.startswith(f"{source}: ") else f"{source}: {told}") from None


def read_dense_weights(
    path: str | Path, d2_config: str | Path | None = None, categories: str | Path | None = None
) -> Weights:
    """Read weights that are still to be compressed, as `read_weights` does. Raises ValueError for compressed ones."""
    weights = read_weights(path, d2_config, categories)
    if weights.is_compressed:
        raise ValueError(f"{path} is compressed already: give the dense network that it was made of")
    return weights


def weights_name(path: str | Path) -> str:
    """Return what the weights of a file are called: a run's model_final.pth by its folder, others by file name."""
    path = Path(path).resolve()
    return path.parent.name if path.stem == "model_final" else path.stem


def imagenet_weights(body: str = "resnet50") -> Weights:
    """Load torchvision's ImageNet ResNet of a name, downloaded once into torch's own cache.

    Raises ValueError that names the address and the way on where there is no network.
    """
    way_on = "put the file there, give another, model.backbone_weights=FILE, or none: model.backbone_weights=none"
    first, *_ = get_model_weights(body)
    return _downloaded(first, "ImageNet weights", way_on)


def coco_weights() -> Weights:
    """Load torchvision's COCO Faster R-CNN, downloaded once; raises ValueError as `imagenet_weights` does."""
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
    return Weights(str(cached), todays_names(state), {})


def has_digest(path: str | Path, digest: str) -> bool:
    """Tell whether a file's SHA-256 begins with `digest`, which ends the names of torchvision's files."""
    return sha256(path).startswith(digest)


def _digest(weights: Any) -> str:
    return str(weights.url).removesuffix(".pth").rsplit("-", 1)[1]


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str, strict: bool = True) -> None:
    """Copy tensors into a model. Raises ValueError naming the tensors that are missing, unknown or do not fit;
    without `strict`, missing ones are only logged."""
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
        raise ValueError(f"{source}: weights do not fit: {some(wrong or unknown, MOST_TOLD)}")
    if missing and strict:
        raise ValueError(f"{source}: weights are incomplete, missing {some(missing, MOST_TOLD)}")
    if missing:
        log.warning("%s: random weights for what it lacks: %s", source, ", ".join(missing))
    model.load_state_dict({**own, **{key: value for key, value in state.items() if key in own}})
