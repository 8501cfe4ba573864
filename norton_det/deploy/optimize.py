"""Optimises a detector for inference: folds BatchNorm, puts each layer in its fastest form, picks the runtime."""

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from norton_det.deploy.batched import Size
from norton_det.deploy.export import export_onnx
from norton_det.deploy.fold import fold_batch_norms, fold_pyramid
from norton_det.deploy.forms import Timer, choose_forms, torch_timer
from norton_det.deploy.graphs import replay_networks
from norton_det.deploy.int8 import PLAIN, Int8Recipe
from norton_det.deploy.openvino import openvino_timer, quantize, to_openvino
from norton_det.deploy.runtimes import ExportedDetector, Precision, compile_openvino, load_exported
from norton_det.in_flight import most_at_once
from norton_det.models.bags import pool_by_bags
from norton_det.models.categories import categories_of, keypoints_of
from norton_det.models.device import device_of
from norton_det.models.precision import PRECISIONS, lower_networks
from norton_det.models.recognise import structure_of

Runtime = Literal["auto", "torch", "openvino", "onnxruntime"]
Builder = Callable[[nn.Module, Sequence[Tensor], Precision], "TorchDetector | ExportedDetector"]
SUPPORTED: dict[Runtime, tuple[Precision, ...]] = {
    "torch": ("float32", "bfloat16", "float16"),
    "onnxruntime": ("float32",),
    "openvino": ("float32", "bfloat16", "int8"),
}


class TorchDetector:
    """A detector for inference in torch.

    It takes a list of images (3, H, W), float RGB in 0 to 1, and returns torchvision's list of dictionaries.

    Attributes:
        detector: the optimised network.
        categories: names by label, `__background__` first.
        category_ids: the dataset's ids in the same order.
        keypoints: the keypoints that it finds of each object; None: it finds none.
        at_once: with how many calls at a time, each from a thread of its own, it is to be used.
    """

    def __init__(self, detector: nn.Module, at_once: int = 1) -> None:
        self.detector, self.at_once = detector, at_once
        self.categories, self.category_ids = categories_of(detector)
        self.keypoints = keypoints_of(detector)

    def eval(self) -> "TorchDetector":
        """Return itself: there is no training mode."""
        return self

    def for_many(self) -> "TorchDetector":
        """Return the same detector for most images a second: on a CPU several calls share the cores."""
        return TorchDetector(self.detector, most_at_once() if device_of(self.detector).type == "cpu" else 1)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the detections of each image."""
        found: list[dict[str, Tensor]] = self.detector(list(images))
        return found


def optimize(
    detector: nn.Module,
    images: Sequence[Tensor],
    runtime: Runtime = "auto",
    precision: Precision = "float32",
) -> TorchDetector | ExportedDetector:
    """Make a detector for inference only, called like the given one, which is left as it is.

    BatchNorm is folded into the convolutions, and every CP convolution runs in the form that measuring finds fastest
    in the runtime for the size of the first image. `float32` gives equal detections; `bfloat16`, `float16` (torch)
    and `int8` (openvino) give almost equal ones.

    Args:
        detector: ours or torchvision's, on the device where it is to run.
        images: float RGB (3, H, W) in 0 to 1, at least one of the size to be fast at; int8 takes the ranges of its
            numbers from all of them, ideally a few hundred.
        runtime: `torch`, `openvino` or `onnxruntime`; `auto`: on a CPU the first of openvino, onnxruntime and torch
            that is installed and supports the precision, on a GPU torch.
        precision: the numbers to compute in, as said above.

    Raises:
        ValueError: there is no image, or the runtime is not installed or does not support the precision.
    """
    if not images:
        raise ValueError("optimize needs at least one image of the size to be fast at")
    chosen = _choose_runtime(runtime, precision, device_of(detector))
    builders: dict[str, Builder] = {"torch": _torch, "openvino": _openvino, "onnxruntime": _onnxruntime}
    return builders[chosen](detector, images, precision)


def prepare(detector: nn.Module, image: Tensor, timer: Timer) -> nn.Module:
    """Return a copy for inference, ready for a runtime: BatchNorm is folded, and each CP convolution is in the form
    that `timer` finds fastest for the size of the image (3, H, W).

    Raises ValueError for what is not a supported detector.
    """
    if structure_of(detector).kind is None:
        raise ValueError(f"expected a detector, got a classifier, a {type(detector).__name__}")
    prepared = copy.deepcopy(detector).to(image.device).eval()
    fold_batch_norms(prepared)
    choose_forms(prepared, image, timer)
    fold_pyramid(prepared)
    return prepared


def _choose_runtime(runtime: Runtime, precision: Precision, device: torch.device) -> str:
    if runtime == "auto":
        known = [name for name, precisions in SUPPORTED.items() if precision in precisions]
        if not known:
            every = dict.fromkeys(each for precisions in SUPPORTED.values() for each in precisions)
            raise ValueError(f"precision {precision!r} is not one of {', '.join(every)}")
        order = ["torch"] if device.type == "cuda" else ["openvino", "onnxruntime", "torch"]
        usable = [name for name in order if name in known and importlib.util.find_spec(name)]
        if not usable:
            raise ValueError(
                f"precision {precision!r} needs one of {', '.join(known)}, none of which can be used here"
            )
        return usable[0]
    if runtime not in SUPPORTED:
        raise ValueError(f"runtime {runtime!r} is not one of auto, {', '.join(SUPPORTED)}")
    if precision not in SUPPORTED[runtime]:
        raise ValueError(f"{runtime} runs {', '.join(SUPPORTED[runtime])}, not {precision!r}")
    if not importlib.util.find_spec(runtime):
        raise ValueError(f"{runtime} is not installed: pip install norton_det[deploy]")
    return runtime


def _torch(detector: nn.Module, images: Sequence[Tensor], precision: Precision) -> TorchDetector:
    dtype, device = PRECISIONS[precision], device_of(detector)
    prepared = prepare(detector, images[0].to(device), torch_timer(device, dtype))
    prepared.to(memory_format=torch.channels_last)
    lower_networks(prepared, dtype)
    if device.type == "cuda":
        replay_networks(prepared)
    else:
        pool_by_bags(prepared)
    return TorchDetector(prepared)


def _openvino(detector: nn.Module, images: Sequence[Tensor], precision: Precision) -> ExportedDetector:
    return compile_openvino(openvino_model(detector, images, precision), precision, "the optimised detector")


def openvino_model(
    detector: nn.Module,
    images: Sequence[Tensor],
    precision: Precision,
    recipe: Int8Recipe = PLAIN,
    frame: Size | None = None,
) -> Any:
    """Convert a detector to an OpenVINO model, arguments as for `optimize`; in int8 it is quantised by `recipe`.
    `frame` is as for `export_onnx`."""
    first = images[0].cpu()
    prepared = prepare(detector, first, openvino_timer)
    model = to_openvino(prepared, first, frame)
    return quantize(model, prepared, images, recipe) if precision == "int8" else model


def _onnxruntime(detector: nn.Module, images: Sequence[Tensor], _: Precision) -> ExportedDetector:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(detector, images[0], path)
        return load_exported(path)


def write_onnx(detector: nn.Module, image: Tensor, path: Path, frame: Size | None = None) -> None:
    """Write an ONNX file of the detector that is fast at the size of the image; `frame` is as for `export_onnx`."""
    example = image.cpu()
    export_onnx(prepare(detector, example, torch_timer(example.device, torch.float32)), path, example, frame)
