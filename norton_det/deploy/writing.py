"""Writes a detector to a file for another runtime, and keeps the file only if it detects what torch does."""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from norton_det.deploy.batched import Size
from norton_det.deploy.int8 import PLAIN, Int8Recipe
from norton_det.deploy.openvino import save_openvino
from norton_det.deploy.optimize import openvino_model, write_onnx
from norton_det.deploy.parity import Parity, parity
from norton_det.deploy.runtimes import Precision, load_exported
from norton_det.models.device import device_of
from norton_det.models.modes import evaluating
from norton_det.replacing import replaced

FilePrecision = Literal["float32", "int8"]
CHECKED = 8
"""The most images on which a file is checked."""


def export_file(
    detector: nn.Module,
    path: str | Path,
    images: Sequence[Tensor],
    precision: FilePrecision = "float32",
    frame: Size | None = None,
) -> Parity:
    """Write a detector to an .onnx file, or to an .xml file of OpenVINO with its .bin, and compare it with torch.

    `images` are float RGB (3, H, W) in 0 to 1: the file is fast at the size of the first one, and compared on the
    first CHECKED; int8, which only OpenVINO runs, takes the ranges of its numbers from all of them. Missing folders
    are made.

    A file with a `frame`, a height and a width, has tensors of constant shapes: it takes one image that is resized
    and then padded to the frame. It returns the most detections that an image can have, and how many of them are
    real. It is compared with torch on images that are padded alike.

    Returns:
        how far the file's detections lie from torch's.

    Raises:
        ValueError: there is no image, or one is larger than the frame; the ending or precision is unknown; the
            runtime is not installed; the detector is not supported; or, in float32, detections differ from torch's,
            and nothing is written.
    """
    path = Path(path)
    check_target(path, precision)
    if not images:
        raise ValueError(f"{path}: exporting needs at least one image, on which the file is compared with torch")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        write_model(detector, temporary, images, precision, frame=frame)
        compared = _compare(detector, temporary, [image.cpu() for image in images[:CHECKED]], frame)
        if precision == "float32" and not compared.is_equal:
            raise ValueError(f"{path.name} is not written, its detections differ from torch's: {compared}")
        for file in reversed(files_of(temporary)):
            file.replace(path.parent / file.name)
    return compared


def write_model(
    detector: nn.Module,
    path: Path,
    images: Sequence[Tensor],
    precision: Precision,
    recipe: Int8Recipe = PLAIN,
    frame: Size | None = None,
) -> None:
    """Write a detector to an .onnx or .xml file without comparing it; images as for `export_file`."""
    if path.suffix == ".onnx":
        write_onnx(detector, images[0], path, frame)
    else:
        save_openvino(openvino_model(detector, images, precision, recipe, frame), path)


def check_target(path: Path, precision: str) -> None:
    """Raise ValueError if a file with this ending cannot hold this precision."""
    if (path.suffix, precision) not in ((".onnx", "float32"), (".xml", "float32"), (".xml", "int8")):
        raise ValueError(f"{path}, {precision!r}: float32 goes to an .onnx or .xml file, int8 to an .xml file")


def files_of(path: Path) -> list[Path]:
    """Return an exported model's files; OpenVINO has two."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


@torch.inference_mode()
def _compare(detector: Any, path: Path, images: list[Tensor], frame: Size | None) -> Parity:
    device = device_of(detector)
    with evaluating(detector):
        detector([images[0].to(device)])  # the first image, without a frame, decides the scales of the levels
        with _padded_to(frame, detector.transform) if frame else nullcontext():
            expected = [detector([image.to(device)])[0] for image in images]
    exported = load_exported(path)
    found = [exported([image])[0] for image in images]
    return parity(found, [{name: value.cpu() for name, value in of_image.items()} for of_image in expected])


def _padded_to(frame: Size, transform: Any) -> Any:
    """Make torchvision's transform pad images inside the context as if an image of that size stood beside them."""
    batch = transform.batch_images

    def batch_images(images: list[Tensor], size_divisible: int = 32) -> Tensor:
        beside: Tensor = batch([*images, images[0].new_zeros(3, *frame)], size_divisible)
        return beside[:-1]

    return replaced(transform, "batch_images", batch_images)
