"""Write a detector as an ONNX or OpenVINO file, checked against torch."""

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from norton_det.data.catalog import open_images
from norton_det.data.shapes import draw_scene
from norton_det.deploy.agreement import agreement
from norton_det.deploy.openvino import save_openvino
from norton_det.deploy.optimize import openvino_model, write_onnx
from norton_det.deploy.runtimes import load_exported
from norton_det.models.weights import detector_from_weights, read_weights

log = logging.getLogger(__name__)
CHECKED = 8
"""Images that the file is checked on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--weights", required=True, help="a detector's weights file")
    parser.add_argument("--output", required=True, type=Path, help="model.onnx, or model.xml for OpenVINO")
    parser.add_argument("--precision", choices=["float32", "int8"], default="float32", help="int8: OpenVINO only")
    parser.add_argument("--images", help="a folder of images or a dataset's name (default: drawn scenes)")
    parser.add_argument("--image-count", type=int, default=200, help="images that int8 is calibrated on, at most")


def run(args: argparse.Namespace) -> None:
    """Export, read back, compare with torch, and only then put the file in its place."""
    if (args.output.suffix, args.precision) not in ((".onnx", "float32"), (".xml", "float32"), (".xml", "int8")):
        raise ValueError(f"--output {args.output}: float32 goes to an .onnx or .xml file, int8 to an .xml file")
    detector = detector_from_weights(read_weights(args.weights)).eval()
    images = load_images(args.images, args.image_count if args.precision == "int8" else CHECKED)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output.parent) as folder:
        path = Path(folder) / args.output.name
        if path.suffix == ".onnx":
            write_onnx(detector, images[0], path)
        else:
            save_openvino(openvino_model(detector, images, args.precision), path)
        check(detector, images[:CHECKED], path, exact=args.precision == "float32")
        for file in reversed(files_of(path)):
            file.replace(args.output.parent / file.name)
    print(f"exported: {args.output} ({sum(p.stat().st_size for p in files_of(args.output)) / 2**20:.1f} MiB)")


def load_images(where: str | None, count: int) -> list[Tensor]:
    """Float RGB images (3, H, W) in 0 to 1, from a folder or dataset, or drawn."""
    if where is None:
        rng = np.random.default_rng(0)
        return [torch.from_numpy(draw_scene(rng).image).permute(2, 0, 1).float() / 255 for _ in range(count)]
    return list(open_images(where, count))


@torch.inference_mode()
def check(detector: GeneralizedRCNN, images: list[Tensor], path: Path, exact: bool) -> None:
    """Compare the file's detections with torch's. Raises ValueError where they must be equal and are not."""
    expected = [detector([image])[0] for image in images]
    compared = agreement(load_exported(path)(images), expected)
    if exact and not compared.is_equal:
        raise ValueError(f"{path.name} is not written, its detections differ from torch's: {compared}")
    log.info("beside torch, on %d images: %s", len(images), compared)
    if not compared.expected:
        log.warning("torch detects nothing on these images, so nothing was compared: give some by --images")


def files_of(path: Path) -> list[Path]:
    """An exported model's files: OpenVINO's are two."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
