"""Loads an exported file as a detector, called like the one that it came from, run by onnxruntime or OpenVINO."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

from norton_det.deploy.export import METADATA_KEY, OUTPUTS, Description, framed
from norton_det.in_flight import most_at_once
from norton_det.models.variants import TRANSFORMS

EXPORTED = (".onnx", ".xml")
"""How the names of exported files end."""
Array = np.ndarray[Any, Any]
Session = Callable[[Array, Array], Sequence[Array]]
"""Maps images and their sizes to the outputs of an `ExportedGraph`."""
Opener = Callable[[int], Session]
"""Opens a graph so that it is fast with so many calls at a time, from as many threads; the same one each time."""
Precision = Literal["float32", "bfloat16", "float16", "int8"]


class ExportedDetector:
    """A detector for inference, from an exported file.

    It takes a list of images (3, H, W), float RGB in 0 to 1, and returns torchvision's list of dictionaries.
    Its transform is torchvision's, or a variant of it; keypoints are found in heatmaps as torchvision does. The file
    computes what lies between.

    Attributes:
        categories: names by label, `__background__` first.
        category_ids: the dataset's ids in the same order.
        keypoints: the keypoints that it finds of each object; None: it finds none.
        outputs: what it finds, of boxes, labels, scores, masks, keypoints.
        session: the file's graph.
        at_once: with how many calls at a time, each from a thread of its own, it is to be used.
        transform: resizes images, scales detections back and pastes masks.
    """

    def __init__(self, opener: Opener, description: Description, at_once: int = 1) -> None:
        self.session, self.at_once = opener(at_once), at_once
        self._opener, self._description = opener, description
        self._names = description.outputs
        self.outputs = tuple(OUTPUTS[name] for name in self._names)
        self.transform = TRANSFORMS[description.images](
            description.min_size, description.max_size, [0.0] * 3, [1.0] * 3, fixed_size=description.fixed_size
        ).eval()
        self.categories, self.category_ids = list(description.categories), list(description.category_ids)
        self.keypoints = description.keypoints

    def eval(self) -> "ExportedDetector":
        """Return itself: there is no training mode."""
        return self

    def to(self, device: torch.device | str) -> "ExportedDetector":
        """Return itself: the runtime has chosen where it runs."""
        return self

    def at_size(self, min_size: int, max_size: int, fixed_size: tuple[int, int] | None = None) -> "ExportedDetector":
        """Return the same file for images that are resized otherwise; arguments as for torchvision's transform."""
        description = replace(self._description, min_size=min_size, max_size=max_size, fixed_size=fixed_size)
        return ExportedDetector(self._opener, description, self.at_once)

    def for_many(self) -> "ExportedDetector":
        """Return the same file for most images a second: several calls share the cores, and each takes longer."""
        return ExportedDetector(self._opener, self._description, most_at_once())

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the detections of each image, found in one batch, or one image at a time if the file has a frame.

        Raises ValueError if a resized image is larger than the frame.
        """
        size = 1 if self._description.frame else max(len(images), 1)
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        return [found for batch in batches for found in self._detect(batch)]

    def _detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        inputs = self.inputs(images)
        return self.detections(self.session(*inputs), inputs[1], images)

    def inputs(self, images: Sequence[Tensor]) -> tuple[Array, Array]:
        """Return what the session takes for a batch: images (B, 3, H, W), resized and padded, and their heights and
        widths before padding (B, 2)."""
        resized = [self.transform.resize(image.cpu(), None)[0] for image in images]
        batch, sizes = framed(resized, self._description.frame)
        return batch.contiguous().numpy(), sizes.numpy()

    def detections(self, outputs: Sequence[Array], sizes: Array, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the detections of each image from the session's outputs for a batch."""
        counts, *arrays = outputs
        ends = np.cumsum(counts)
        split = [np.split(array, ends)[: len(images)] for array in arrays]
        found: list[dict[str, Tensor]] = [
            {name: torch.from_numpy(np.array(rows)) for name, rows in zip(self._names, of_image, strict=True)}
            for of_image in zip(*split, strict=True)
        ]
        for of_image in found:
            if "heatmaps" in of_image:
                keypoints = heatmaps_to_keypoints(of_image.pop("heatmaps"), of_image["boxes"])
                of_image["keypoints"], of_image["keypoints_scores"] = keypoints
        resized = [(int(height), int(width)) for height, width in sizes]
        scaled: list[dict[str, Tensor]] = self.transform.postprocess(
            found, resized, [(image.shape[1], image.shape[2]) for image in images]
        )
        return scaled


def load_exported(path: str | Path, precision: Precision = "float32") -> ExportedDetector:
    """Load the detector of an exported .onnx file (onnxruntime) or .xml file (OpenVINO).

    An .xml file that holds float32 may run in bfloat16; one in int8 runs in int8 whatever the precision.

    Raises ValueError naming the file if it is missing, damaged or not written by this package, or if the runtime is
    not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {str(path)!r}")
    if path.suffix == ".onnx":
        if precision != "float32":
            raise ValueError(f"{path}: onnxruntime runs float32, not {precision!r}")
        return _load_onnx(path)
    if path.suffix == ".xml":
        return compile_openvino(_read_openvino(path), precision, str(path))
    raise ValueError(f"{path}: an exported detector is an .onnx or an .xml file")


def _load_onnx(path: Path) -> ExportedDetector:
    try:
        import onnxruntime
    except ImportError:
        raise ValueError(f"{path}: needs onnxruntime: pip install norton_det[deploy]") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    except Exception as error:  # its errors share no other base
        raise ValueError(f"{path}: not an ONNX file that onnxruntime can read: {_reason(error)}") from None
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")
    description = Description.from_json(text, str(path))
    _check_graph(str(path), description, [len(i.shape) for i in session.get_inputs()], len(session.get_outputs()))

    def run(images: Array, sizes: Array) -> Sequence[Array]:
        outputs: Sequence[Array] = session.run(None, {"images": images, "sizes": sizes})
        return outputs

    return ExportedDetector(lambda at_once: run, description)  # a session takes calls from any thread


def _check_graph(source: str, description: Description, ranks: Sequence[int], outputs: int) -> None:
    """Raise ValueError if a graph's inputs, of these ranks, or its outputs are not those that its file describes."""
    if list(ranks) != [4, 2] or outputs != 1 + len(description.outputs):
        raise ValueError(f"{source}: its graph is not that of the detector that it describes")


def _read_openvino(path: Path) -> Any:
    core = openvino_core()
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ValueError(f"{path}: its weights, {weights.name}, are not beside it: copy both files")
    try:
        return core.read_model(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: not an OpenVINO file that can be read: {_reason(error)}") from None


def compile_openvino(model: Any, precision: Precision, source: str) -> ExportedDetector:
    """Compile one of our OpenVINO models to a detector; `bfloat16` is used if the machine supports it.

    Raises ValueError naming `source` if the model was not written by this package.
    """
    text = model.get_rt_info([METADATA_KEY]).astype(str) if model.has_rt_info([METADATA_KEY]) else ""
    description = Description.from_json(text, source)
    _check_graph(source, description, [len(i.partial_shape) for i in model.inputs], len(model.outputs))

    @cache
    def opener(at_once: int) -> Session:
        compiled = openvino_core().compile_model(model, "CPU", compile_options(precision, at_once))
        outputs, own = list(compiled.outputs), threading.local()

        def run(images: Array, sizes: Array) -> list[Array]:
            if not hasattr(own, "request"):  # a request takes one call at a time
                own.request = compiled.create_infer_request()
            results = own.request.infer({"images": images, "sizes": sizes}, share_inputs=True)
            return [results[output] for output in outputs]

        return run

    return ExportedDetector(opener, description)


def compile_options(precision: Precision, at_once: int = 1) -> dict[str, str]:
    """Return OpenVINO's options for a precision and so many calls at a time."""
    options = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32"}
    if at_once == 1:
        return options | {"PERFORMANCE_HINT": "LATENCY"}
    return options | {"PERFORMANCE_HINT": "THROUGHPUT", "PERFORMANCE_HINT_NUM_REQUESTS": str(at_once)}


@cache
def openvino_core() -> Any:
    """Return OpenVINO's core, one for the process. Raises ValueError if OpenVINO is not installed."""
    try:
        import openvino
    except ImportError:
        raise ValueError("OpenVINO is not installed: pip install norton_det[deploy]") from None
    return openvino.Core()


def _reason(error: Exception) -> str:
    """Return the last line of an error: the lines before it say where in the runtime's source it was raised."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:200]
