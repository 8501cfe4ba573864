"""Draws validation images with their ground truth and the predictions, embedded in a page."""

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torchvision.transforms.v2.functional import resize, to_pil_image

from norton_det.data.catalog import Categories, DatasetFiles
from norton_det.data.coco import CocoDataset
from norton_det.data.reading import Task
from norton_det.data.transforms import to_model_targets
from norton_det.evaluation.results import to_output
from norton_det.visualization.draw import draw_predictions, draw_targets

LONGEST_SIDE = 480
"""The longest side, in pixels, of a picture in the page."""


@dataclass(frozen=True)
class Pair:
    """Holds an image twice, as data URIs: with its ground truth, or what replaces it, and with the predictions."""

    image_id: int | str
    truth: str
    predictions: str


def draw_pairs(
    files: DatasetFiles,
    categories: Categories,
    task: Task,
    results: Sequence[Mapping[str, Any]],
    count: int = 12,
    confidence: float = 0.5,
) -> list[Pair]:
    """Draw `count` images, evenly spread over the dataset, with the COCO `results` of at least `confidence`."""
    dataset = CocoDataset(files, categories, task, training=True, keep_empty=True)
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    pairs = []
    for number in range(min(count, len(dataset))):
        image, target = dataset[number * len(dataset) // min(count, len(dataset))]
        image = image.as_subclass(Tensor)
        found = to_output(by_image[target["image_id"]], categories)
        truth = draw_targets(image, to_model_targets(target), categories.names, categories.keypoints)
        predictions = draw_predictions(image, found, categories.names, confidence, categories.keypoints)
        pairs.append(Pair(target["image_id"], data_uri(truth), data_uri(predictions)))
    return pairs


def data_uri(picture: Tensor) -> str:
    """Return a picture, uint8 RGB (3, H, W), made smaller if it is large, as a JPEG in a data URI."""
    scale = min(1.0, LONGEST_SIDE / max(picture.shape[1:]))
    smaller = resize(picture, [round(scale * side) for side in picture.shape[1:]])
    buffer = io.BytesIO()
    to_pil_image(smaller).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
