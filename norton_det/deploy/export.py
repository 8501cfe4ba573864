"""Exports a detector to an ONNX file that describes itself in its metadata."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from norton_det.deploy.batched import Normalised, Places, Proposals, RegionHeads, Size, rows_of
from norton_det.files import atomic_path, to_json
from norton_det.keypoints import Keypoints
from norton_det.models.categories import categories_of, keypoints_of
from norton_det.models.parts import regions
from norton_det.models.settings import read_settings
from norton_det.models.variants import Images

OPSET = 17
METADATA_KEY = "norton_det"
Output = Literal["boxes", "labels", "scores", "masks", "heatmaps"]
OUTPUTS: dict[Output, str] = {
    "boxes": "boxes",
    "labels": "labels",
    "scores": "scores",
    "masks": "masks",
    "heatmaps": "keypoints",
}
"""A file's output tensors, and the entries of torchvision's detections that they become."""
_OF_REGIONS: dict[Output, str] = {"masks": "mask", "heatmaps": "keypoint"}
"""Outputs that only a detector with such a head has."""


@dataclass(frozen=True)
class Description:
    """Describes an exported file: how images are resized, and by which of `variants.TRANSFORMS`; its outputs; names
    by label; and the height and width of the frame to which its one image is padded (None: it takes any images)."""

    min_size: int
    max_size: int
    fixed_size: tuple[int, int] | None
    outputs: tuple[Output, ...]
    categories: tuple[str, ...]
    category_ids: tuple[int, ...]
    keypoints: Keypoints | None = None
    frame: Size | None = None
    images: Images = "torchvision"

    def to_json(self) -> str:
        """Return the description as text for a file's metadata."""
        return to_json(asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str) -> "Description":
        """Read what `to_json` wrote. Raises ValueError naming the file, `source`, for any other text."""
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError:
            raise ValueError(f"{source}: its description of the detector cannot be read") from None


def resize(detector: nn.Module, image: Tensor) -> Tensor:
    """Resize an image (3, H, W) as the detector, in evaluation mode, does: to what an exported graph takes."""
    transform: Any = detector.transform
    resized: Tensor = transform.resize(image, None)[0].contiguous()
    return resized


class ExportedGraph(nn.Module):
    """Maps resized images, RGB in 0 to 1, to tensors of what is found in them; this is what is exported.

    With `is_fixed` every shape follows from the images' shape, as if each image had the most detections possible.
    """

    def __init__(self, detector: nn.Module, is_fixed: bool = False) -> None:
        super().__init__()
        model: Any = copy.deepcopy(detector).eval()
        self.is_fixed = is_fixed
        self.transform, self.backbone = Normalised(model.transform), model.backbone
        self.has_regions = bool(regions(model))
        if self.has_regions:
            self.rpn, self.roi_heads = Proposals(model.rpn), RegionHeads(model.roi_heads, is_fixed)
        else:
            self.places = Places(model)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Compute what an exported file computes.

        Args:
            images: (B, 3, H, W), each in the upper left corner of its frame.
            sizes: the heights and widths of the images, (B, 2).

        Returns:
            `num_detections` (B,), then the tensors of OUTPUTS that the detector has: the detections of all images,
            one image after the other, each image's best first. With `is_fixed` every image has places for the most
            detections possible.
        """
        normalised = self.transform(images, sizes)
        features = self.backbone(normalised)
        if self.has_regions:
            proposals = self.rpn(normalised, features, sizes)
            frame = (int(images.shape[2]), int(images.shape[3]))
            found, rows, more = self.roi_heads(features, proposals, sizes, frame)
        else:
            found, more = self.places(normalised, features, sizes), {}
            rows = rows_of(found.boxes, None if self.is_fixed else found.scores >= 0)
        labels, scores = (values.flatten()[rows.places] for values in (found.groups, found.scores))
        return (found.scores >= 0).sum(dim=1), rows.boxes, labels, scores, *more.values()


def describe_export(detector: nn.Module, frame: Size | None = None) -> Description:
    """Return the description of this detector's file."""
    settings, found = read_settings(detector), regions(detector)
    categories, category_ids = categories_of(detector)
    fixed = settings["fixed_size"]
    without = {name for name, kind in _OF_REGIONS.items() if kind not in found}
    return Description(
        min_size=settings["min_size"][-1],
        max_size=settings["max_size"],
        fixed_size=(fixed[0], fixed[1]) if fixed else None,
        outputs=tuple(name for name in OUTPUTS if name not in without),
        categories=tuple(categories),
        category_ids=tuple(category_ids),
        keypoints=keypoints_of(detector),
        frame=frame,
        images=settings["images"],
    )


@torch.inference_mode()
def export_onnx(detector: nn.Module, path: Path, example: Tensor, frame: Size | None = None) -> Description:
    """Write a float32 ONNX file of the detector, for any number of images of any size, or for one image in a frame.

    Args:
        detector: the detector, in evaluation mode.
        path: the file to write.
        example: an image (3, H, W), RGB in 0 to 1, on which the detector finds something: it is traced on it.
        frame: height and width to which images are padded, so that all tensors have constant shapes; None: no frame.
    """
    description = describe_export(detector, frame)
    images, sizes = framed([resize(detector, example)], frame)
    graph = ExportedGraph(detector, is_fixed=frame is not None)
    outputs = graph(images, sizes)
    names = ["num_detections", *description.outputs]
    dynamic = {"images": {0: "batch", 2: "height", 3: "width"}, "sizes": {0: "batch"}, "num_detections": {0: "batch"}}
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of constants, which are the same for any input here
        torch.onnx.export(
            graph,
            (images, sizes),
            str(temporary),
            input_names=["images", "sizes"],
            output_names=names,
            dynamic_axes=None if frame else dynamic | {name: {0: "detections"} for name in description.outputs},
            opset_version=OPSET,
            dynamo=False,
        )
        _complete(temporary, description, [tuple(x.shape) for x in outputs] if frame else [])
    return description


def framed(images: Sequence[Tensor], frame: Size | None = None) -> tuple[Tensor, Tensor]:
    """Pad images (3, H, W) right and below to a frame, or to the largest of them, as an exported graph takes them.

    Returns the batch and the images' heights and widths. Raises ValueError if an image is larger than the frame.
    """
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = frame or sizes.amax(dim=0).tolist()
    for size in sizes.tolist():
        if size[0] > height or size[1] > width:
            raise ValueError(
                f"an image is {size[0]} x {size[1]} when resized, this detector takes {height} x {width}"
            )
    padded = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    return torch.stack(padded), sizes


def _complete(path: Path, description: Description, shapes: Sequence[tuple[int, ...]]) -> None:
    """Add to a file its description, and the outputs' shapes if they are constant, which the exporter leaves out."""
    import onnx

    model = onnx.load(str(path))
    model.metadata_props.add(key=METADATA_KEY, value=description.to_json())
    for output, shape in zip(model.graph.output, shapes, strict=False):
        for dimension, length in zip(output.type.tensor_type.shape.dim, shape, strict=True):
            dimension.dim_value = length
    onnx.save(model, str(path))
