"""Runs pycocotools' comparison of results with the truth, and computes the AP that comes of it."""

import contextlib
import io
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from norton_det.data.reading import Task


def as_coco(content: dict[str, Any]) -> Any:
    """Return a dataset's content as pycocotools' COCO."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
    return coco


def compare(
    truth: Any,
    results: list[dict[str, Any]],
    kind: Task,
    sigmas: NDArray[np.float64] | None,
    most: int,
    image_ids: Sequence[int] | None = None,
) -> Any:
    """Run a COCOeval with at most `most` detections an image and category; the results stay as they are."""
    with contextlib.redirect_stdout(io.StringIO()):
        if results:
            found = truth.loadRes([dict(result) for result in results])
        else:  # loadRes refuses an empty list
            found = as_coco({**truth.dataset, "annotations": []})
        comparison = COCOeval(truth, found, kind)
        if kind == "keypoints":
            comparison.params.kpt_oks_sigmas = sigmas
        comparison.params.maxDets[-1] = most
        if image_ids is not None:
            comparison.params.imgIds = sorted(image_ids)
        comparison.evaluate()
        comparison.accumulate()
    return comparison


def summarize(comparison: Any) -> dict[str, float]:
    """Return what pycocotools' `summarize` prints, for any numbers of detections; its own knows only COCO's."""
    sizes = comparison.params.areaRngLbl[1:]  # small, medium, large; no small ones for keypoints
    most = comparison.params.maxDets
    mean = partial(_mean, comparison)
    metrics = {"AP": mean("precision"), "AP50": mean("precision", iou=0.5), "AP75": mean("precision", iou=0.75)}
    metrics |= {f"AP{size[0]}": mean("precision", size) for size in sizes}
    if comparison.params.iouType == "keypoints":
        metrics |= {"AR": mean("recall"), "AR50": mean("recall", iou=0.5), "AR75": mean("recall", iou=0.75)}
    else:
        metrics |= {f"AR{count}": mean("recall", most=place) for place, count in enumerate(most)}
    return metrics | {f"AR{size[0]}": mean("recall", size) for size in sizes}


def _mean(comparison: Any, of: str, size: str = "all", iou: float | None = None, most: int = -1) -> float:
    """Return the mean in points over thresholds, categories and, for precision, recalls; NaN where there is none."""
    values = comparison.eval[of][..., comparison.params.areaRngLbl.index(size), most]
    if iou is not None:
        values = values[np.isclose(comparison.params.iouThrs, iou)]
    valid = values[values > -1]  # -1 stands for undefined
    return float(100 * np.mean(valid)) if valid.size else math.nan


def average_precisions(comparison: Any) -> dict[str, float]:
    """Return the AP of each category in points, by name; NaN without objects."""
    return {name: float(100 * values.mean()) for name, values in precisions(comparison).items()}


def precisions(comparison: Any) -> dict[str, NDArray[np.float64]]:
    """Return by category's name the precision (T, R) at IoU thresholds and recalls; NaN without objects."""
    # from (T, R, K, areas, numbers of detections) to (T, R, K): all areas, the largest number
    precision = comparison.eval["precision"][:, :, :, 0, -1]
    names = [category["name"] for category in comparison.cocoGt.loadCats(comparison.params.catIds)]
    valid = np.where(precision >= 0, precision, np.nan)
    return {name: valid[:, :, k] for k, name in enumerate(names)}
