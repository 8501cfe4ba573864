"""Makes OpenVINO models of a detector: from its ONNX file, and quantised to int8."""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.analysis.latency import median_seconds
from norton_det.deploy.batched import Size
from norton_det.deploy.export import METADATA_KEY, Description, export_onnx, framed, resize
from norton_det.deploy.forms import CPShape, Shape, build_layer
from norton_det.deploy.int8 import PLAIN, Int8Recipe, restore_parts
from norton_det.deploy.runtimes import compile_openvino, openvino_core
from norton_det.layers.cp_conv import Form
from norton_det.models.parts import regions

NOT_QUANTIZED = [".*roi_pool.*", ".*anchor_generator.*", r"/((transform|rpn|roi_heads|places)/)?[^/]+$"]
"""Names of nodes that compute indices and coordinates: they pool regions, lay anchors, and decode boxes."""


def to_openvino(detector: nn.Module, example: Tensor, frame: Size | None = None) -> Any:
    """Convert a detector to an OpenVINO model; arguments as for `export_onnx`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        return convert_onnx(path, export_onnx(detector, path, example, frame))


def convert_onnx(path: Path, description: Description) -> Any:
    """Convert one of our ONNX files to an OpenVINO model that holds its description."""
    core = openvino_core()
    model = core.read_model(path)
    _fold_constants(model)
    model.set_rt_info(description.to_json(), [METADATA_KEY])
    with tempfile.TemporaryDirectory() as folder:
        # Writing and reading gives every node a unique name, which quantisation needs.
        save_openvino(model, Path(folder) / "model.xml")
        return core.read_model(Path(folder) / "model.xml")


def _fold_constants(model: Any) -> None:
    """Fold constants, among them the weights of depthwise convolutions: int8 skips weights reshaped in the graph."""
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)


def quantize(model: Any, detector: nn.Module, images: Sequence[Tensor], recipe: Int8Recipe = PLAIN) -> Any:
    """Quantise a model's convolutions and linear layers to int8, with ranges taken from the given images.

    Images are read one at a time, and kept as the network sees them. For a detector with mask or keypoint heads,
    those without any detection are left out, as these heads' ranges would be zero. Raises ValueError if nncf is not
    installed, or no image is left.
    """
    if not images:
        raise ValueError("int8 needs images to calibrate on")
    os.environ.setdefault("NNCF_DISABLE_TELEMETRY", "1")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # tells of CUDA, which nothing here needs
    try:
        import nncf
    except ImportError:
        raise ValueError("nncf is not installed: pip install norton_det[deploy]") from None
    nncf.set_log_level(logging.ERROR)
    description = model.get_rt_info([METADATA_KEY]).astype(str)
    frame = Description.from_json(description, "the model to quantise").frame
    needs_boxes = len(regions(detector)) > 1
    detect = compile_openvino(model, "float32", "the model to quantise") if needs_boxes else None
    inputs = []
    with torch.inference_mode():
        for image in images:
            if detect is None or len(detect([image])[0]["boxes"]):
                seen, size = framed([resize(detector, image.cpu())], frame)
                inputs.append({"images": seen.numpy(), "sizes": size.numpy()})
    if not inputs:
        raise ValueError("int8 needs images on which the detector finds something: on these it finds nothing")
    with redirect_stdout(sys.stderr):  # where progress belongs
        quantized = nncf.quantize(
            model,
            nncf.Dataset(inputs),
            preset=nncf.QuantizationPreset(recipe.preset),
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(patterns=NOT_QUANTIZED, validate=False),
        )
    restore_parts(quantized, model, recipe.in_float)
    quantized.set_rt_info(description, [METADATA_KEY])
    return quantized


def save_openvino(model: Any, path: Path) -> None:
    """Write `path` (.xml) and its weights beside it (.bin), the .xml last. Raises OSError if the disk is full."""
    import openvino

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        try:
            openvino.save_model(model, temporary, compress_to_fp16=False)
        except RuntimeError as error:
            if "iostream" not in str(error):
                raise
            raise OSError(f"cannot write {path}: is the disk full? ({error})") from None
        for suffix in (".bin", ".xml"):
            temporary.with_suffix(suffix).replace(path.with_suffix(suffix))


@cache
def openvino_timer(shape: CPShape, form: Form, inputs: Shape) -> float:
    """Measure the seconds of one layer in OpenVINO, float32, on all cores."""
    import openvino

    model = openvino.convert_model(build_layer(shape, form), example_input=torch.rand(inputs), input=[inputs])
    compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    x = torch.rand(inputs).numpy()
    return median_seconds(lambda: compiled(x))
