"""Makes COCO results of a detector's outputs, and reads them from files."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor

from norton_det.data.catalog import Categories, read_keypoints
from norton_det.data.reading import Task, are_numbers, read_content, rle_problem, whole
from norton_det.names import number_of

log = logging.getLogger(__name__)
_RESULT_KEYS: dict[Task, str] = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
_TASK_OF_OUTPUT: dict[str, Task] = {"masks": "segm", "keypoints": "keypoints"}


def to_results(image_id: int, output: Mapping[str, Any], categories: Categories, task: Task) -> list[dict[str, Any]]:
    """Make one COCO result, a dictionary of plain values, for each detection of an image.

    `output` is described at `CocoEvaluator.process`. The background, which one-stage detectors score like any class,
    and labels that no category uses make no result. Raises ValueError for a label that `categories` lacks, and for
    another number of keypoints than they have.
    """
    boxes = output["boxes"].detach().float().cpu()
    used = set(categories.labels.values())
    corners, extents = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    results = []
    for number, (label, score, box) in enumerate(
        zip(
            output["labels"].tolist(),
            output["scores"].tolist(),
            torch.cat([corners, extents], dim=1).tolist(),
            strict=True,
        )
    ):
        if not 0 <= label < len(categories.ids):
            raise ValueError(f"label {label}, expected 1 to {len(categories.ids) - 1}")
        if label not in used:
            continue
        result = {"image_id": image_id, "category_id": categories.ids[label], "bbox": box, "score": score}
        if task == "segm":
            result["segmentation"] = output["rle"][number] if "rle" in output else _encode(output["masks"][number])
        if task == "keypoints":
            points = output["keypoints"][number].detach().float().cpu()
            if categories.keypoints and len(points) != categories.keypoints.count:
                raise ValueError(f"{len(points)} keypoints, expected {categories.keypoints.count}")
            result["keypoints"] = torch.cat([points[:, :2], torch.ones(len(points), 1)], dim=1).flatten().tolist()
        results.append(result)
    return results


def task_of(output: Mapping[str, Any]) -> Task:
    """Return what an output holds beside boxes; boxes where it holds nothing else."""
    return next((task for key, task in _TASK_OF_OUTPUT.items() if key in output), "bbox")


def to_output(results: Sequence[Mapping[str, Any]], categories: Categories) -> dict[str, Tensor]:
    """Make the COCO results of one image a detector's output, of which `to_results` makes the results again.

    It has boxes (N, 4) xyxy, scores (N,), labels (N,), and masks (N, 1, H, W) or keypoints (N, K, 3) where the
    results have them. Raises ValueError for a category that `categories` lacks.
    """
    labels = categories.labels
    if unknown := {result["category_id"] for result in results} - labels.keys():
        raise ValueError(f"results of unknown categories: {sorted(unknown)}")
    boxes = torch.tensor([result["bbox"] for result in results]).reshape(-1, 4)
    output = {
        "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
        "scores": torch.tensor([float(result["score"]) for result in results]),
        "labels": torch.tensor([labels[result["category_id"]] for result in results], dtype=torch.int64),
    }
    if results and "segmentation" in results[0]:
        masks = np.stack([rle.decode(result["segmentation"]) for result in results])
        output["masks"] = torch.from_numpy(masks).float()[:, None]
    if results and "keypoints" in results[0]:
        points = torch.tensor([result["keypoints"] for result in results])
        output["keypoints"] = points.reshape(len(results), -1, 3)
    return output


def _encode(mask: Tensor) -> dict[str, Any]:
    """Encode where a mask (1, H, W) exceeds 0.5."""
    return encode_mask((mask[0] > 0.5).cpu().numpy())


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask (H, W) as an RLE with text counts."""
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def load_results(path: Path, annotations: Path, task: Task) -> list[dict[str, Any]]:
    """Read a COCO results file.

    Raises:
        ValueError: naming the file where it is no list of results for this task and these annotations.
    """
    try:
        results = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(results, list):
        raise ValueError(f"{path}: expected a list of results, got {type(results).__name__}")
    content = read_content(annotations, "bbox")
    sizes = {id: [image["height"], image["width"]] for id, image in content.images.items()}
    keypoints = read_keypoints(annotations).count if task == "keypoints" else 0
    for number, result in enumerate(results):
        if isinstance(result, dict):
            result |= {key: id for key in ("image_id", "category_id") if (id := whole(result.get(key))) is not None}
        if problem := _problem(result, sizes, task, keypoints):
            raise ValueError(f"{path}: result {number} {problem}")
    known = {category["id"] for category in content.categories}
    unknown = Counter(result["category_id"] for result in results if result["category_id"] not in known)
    if unknown:
        told = f"{number_of(unknown.total(), 'result')} with a category_id that {annotations} lacks"
        log.warning("%s: %s, as %d, count for nothing", path, told, min(unknown))
    return results


def _problem(result: Any, sizes: dict[int, list[int]], task: Task, keypoints: int) -> str | None:
    keys = ("image_id", "category_id", "score", _RESULT_KEYS[task])
    if not isinstance(result, dict) or not all(key in result for key in keys):
        return f"lacks a key, expected {', '.join(keys)}"
    if not isinstance(result["image_id"], int) or result["image_id"] not in sizes:
        return f"has the image_id {result['image_id']!r}, which the annotations lack"
    if not isinstance(result["category_id"], int):
        return f"has the category_id {result['category_id']!r}, expected an integer"
    if not are_numbers([result["score"]], 1):
        return f"has the score {result['score']!r}, expected a number"
    value = result[_RESULT_KEYS[task]]
    if task == "segm":
        if not isinstance(value, dict) or not isinstance(value.get("counts"), str):
            return "has no RLE as its segmentation, expected {'size': [height, width], 'counts': string}"
        problem = rle_problem(value, sizes[result["image_id"]])
        return f"has an {problem}" if problem else None
    count = 4 if task == "bbox" else 3 * keypoints
    return None if are_numbers(value, count) else f"has {_RESULT_KEYS[task]} {value!r}, expected {count} numbers"


def named_results(output: Mapping[str, Any], categories: Categories) -> list[dict[str, Any]]:
    """Turn a detector's output for an image into COCO results without the image, with the category's name.

    Results have masks or keypoints where the output has them.
    """
    found = to_results(0, output, categories, task_of(output))
    for result in found:
        del result["image_id"]
        result["category"] = categories.names[categories.labels[result["category_id"]]]
    return found
