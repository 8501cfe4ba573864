"""From a detector to an ONNX file that says of itself what it needs."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torchvision.models.detection import roi_heads
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import boxes as box_ops

from norton_det.deploy.nms import traced_batched_nms
from norton_det.deploy.roi_align import GatheredRoIAlign, replace_poolers
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
"""A file's tensors, and which of torchvision's detections they become."""
_OF_REGIONS: dict[Output, str] = {"masks": "mask", "heatmaps": "keypoint"}
"""Those that only a detector with such regions gives."""


@dataclass(frozen=True)
class Description:
    """What an exported file says beside its tensors: how images are resized, and by which of `variants.TRANSFORMS`;
    what comes out; names by label."""

    min_size: int
    max_size: int
    fixed_size: tuple[int, int] | None
    outputs: tuple[Output, ...]
    categories: tuple[str, ...]
    category_ids: tuple[int, ...]
    keypoints: Keypoints | None = None
    images: Images = "torchvision"

    def to_json(self) -> str:
        """Text for a file's metadata."""
        return to_json(asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str) -> "Description":
        """The reverse; ValueError naming the file where it was not written by `to_json`."""
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError:
            raise ValueError(f"{source}: its description of the detector cannot be read") from None


class ResizedInput(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's transform for one image that has its final size already: normalised and padded only.

    A resize that is traced rounds some sizes differently from the one that runs in Python, so it stays outside.
    """

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """The image as it is."""
        return image, target

    def normalize(self, image: Tensor) -> Tensor:
        """The first half of it: less the mean."""
        return image - torch.tensor(self.image_mean)[:, None, None]

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """The one image as a batch, padded with zeros at its right and below to full multiples, (1, 3, H, W), and the
        second half of normalising: with a padding of any size right before it the stem would not run in int8.
        """
        [image] = images
        height, width = image.shape[1:]
        padded = F.pad(image[None], (0, -width % size_divisible, 0, -height % size_divisible))
        return padded / torch.tensor(self.image_std)[:, None, None]

    def postprocess(self, result: list[dict[str, Tensor]], *_: Any) -> list[dict[str, Tensor]]:
        """Detections as they are: boxes in the pixels of the resized image, masks not pasted."""
        return result


def resize(detector: nn.Module, image: Tensor) -> Tensor:
    """The image (3, H, W) in the size at which the detector, in evaluation mode, looks at it: what a graph takes."""
    transform: Any = detector.transform
    resized: Tensor = transform.resize(image, None)[0].contiguous()
    return resized


class ExportedGraph(nn.Module):
    """What is exported: a resized image (3, H, W), RGB in 0 to 1, to the tensors of its detections."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = copy.deepcopy(detector).eval()
        transform: Any = self.detector.transform
        self.detector.transform = ResizedInput(
            transform.min_size,
            transform.max_size,
            transform.image_mean,
            transform.image_std,
            transform.size_divisible,
        )
        replace_poolers(self.detector, GatheredRoIAlign)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The tensors of `output_names`, N detections first."""
        detections = self.detector([image])
        found = detections[1][0] if isinstance(detections, tuple) else detections[0]
        return tuple(found[name] for name in OUTPUTS.values() if name in found)


def describe_export(detector: nn.Module) -> Description:
    """What the file of this detector says."""
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
        images=settings["images"],
    )


@torch.inference_mode()
def export_onnx(detector: nn.Module, path: Path, example: Tensor) -> Description:
    """Write an ONNX file of the detector for images of any size, one at a time; float32.

    `example` is an image (3, H, W), RGB in 0 to 1, on which the detector finds something: it is traced with it.
    """
    description = describe_export(detector)
    graph = ExportedGraph(detector)
    resized = resize(detector, example)
    outputs: list[str] = [*description.outputs]
    with atomic_path(path) as temporary, _traceable_torchvision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about what holds for any input here
        torch.onnx.export(
            graph,
            (resized,),
            str(temporary),
            input_names=["image"],
            output_names=outputs,
            dynamic_axes={"image": {1: "height", 2: "width"}, **{name: {0: "detections"} for name in outputs}},
            opset_version=OPSET,
            dynamo=False,
        )
        _add_metadata(temporary, description)
    return description


@contextmanager
def _traceable_torchvision() -> Iterator[None]:
    """torchvision's functions that runtimes do not run as they should, replaced."""

    def keypointrcnn_inference(heatmaps: Tensor, _: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Heatmaps as they are: the loop that enlarges them one by one is far slower in a graph than outside."""
        return [heatmaps], [heatmaps]

    with (
        patch.object(box_ops, "batched_nms", traced_batched_nms),
        patch.object(roi_heads, "keypointrcnn_inference", keypointrcnn_inference),
    ):
        yield


def _add_metadata(path: Path, description: Description) -> None:
    import onnx

    model = onnx.load(str(path))
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, description.to_json()
    onnx.save(model, str(path))
