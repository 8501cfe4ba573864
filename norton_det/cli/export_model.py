"""Write a detector as an ONNX or OpenVINO file, checked against torch."""

import argparse
import logging
from pathlib import Path

from norton_det.cli.options import add_weights, size, weights_words
from norton_det.data.catalog import drawn_images, open_images
from norton_det.deploy.writing import CHECKED, check_target, export_file, files_of
from norton_det.models.persistence import detector_from_weights
from norton_det.models.weights import read_weights

log = logging.getLogger(__name__)
LESS_MEMORY = "give it smaller --images, or fewer (--image-count)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_weights(parser, "a detector")
    parser.add_argument("--output", required=True, type=Path, help="model.onnx, or model.xml for OpenVINO")
    parser.add_argument("--precision", choices=["float32", "int8"], default="float32", help="int8: OpenVINO only")
    parser.add_argument("--images", help="a folder of images or a dataset's name (default: drawn scenes)")
    parser.add_argument(
        "--fixed-size", type=size, metavar="HxW",
        help="give all tensors constant shapes: the file takes one image that fits into HxW pixels when resized",
    )  # fmt: skip
    parser.add_argument("--image-count", type=int, default=200, help="the most images to calibrate int8 on")


def run(args: argparse.Namespace) -> None:
    """Load and export the detector, and say how far the file's detections lie from torch's."""
    check_target(args.output, args.precision)
    detector = detector_from_weights(read_weights(*weights_words(args)))
    count = args.image_count if args.precision == "int8" else CHECKED
    if args.precision == "int8" and not args.images:
        log.warning("int8 takes its ranges from drawn scenes: name photos like those that it will see with --images")
    images = open_images(args.images, count) if args.images else drawn_images(count)
    compared = export_file(detector, args.output, images, args.precision, args.fixed_size)
    log.info("compared with torch on %d images: %s", min(len(images), CHECKED), compared)
    if not compared.expected:
        log.warning("torch detects nothing on these images, so nothing was compared: name others with --images")
    print(f"exported: {args.output} ({sum(p.stat().st_size for p in files_of(args.output)) / 2**20:.1f} MiB)")
