"""Turns predictions into COCO results, and those into AP as pycocotools computes it."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import Params

from norton_det.data.catalog import Categories, read_keypoints
from norton_det.data.reading import WITHOUT_MASK, Content, Task, read_content
from norton_det.evaluation.comparison import as_coco, average_precisions, compare, precisions, summarize
from norton_det.evaluation.results import load_results, to_results
from norton_det.keypoints import COCO_KEYPOINTS, Keypoints
from norton_det.names import number_of

__all__ = ["CocoEvaluator", "PrecisionRecall", "evaluate_results", "load_results", "precision_recall"]

log = logging.getLogger(__name__)
UNIFORM_SIGMA = 0.05
"""The sigma of OKS for keypoints that are not COCO's."""
MOST_DETECTIONS: dict[Task, int] = {"bbox": 100, "segm": 100, "keypoints": 20}
"""How many detections of each category COCO's protocol counts in an image."""


class CocoEvaluator:
    """Collects a detector's outputs and computes COCO's metrics of them.

    `results` is the list of COCO results, one dictionary of plain values for each detection; processes
    that evaluate together gather their lists, and one of them assigns the whole and evaluates.

    Args:
        annotations: the dataset's JSON.
        categories: the labels of the outputs.
        task: what is evaluated beside boxes.
        sigmas: those of OKS, one a keypoint; None: as `oks_sigmas` has them.
        detections: how many of each category count in an image, if more than 100; see `most_detections`.

    Raises:
        ValueError: for annotations with other keypoints than `categories`, and for another number of sigmas; on
            evaluation, for annotations that are not in COCO's format or hold what cannot be taken, see `reading`.
    """

    def __init__(
        self,
        annotations: Path,
        categories: Categories,
        task: Task,
        sigmas: Sequence[float] | None = None,
        detections: int | None = None,
    ) -> None:
        self.annotations = annotations
        self.categories = categories
        self.task = task
        self._sigmas = _sigmas(annotations, task, sigmas, categories.keypoints)
        self._detections = detections
        self.results: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget all outputs."""
        self.results = []

    def process(self, image_ids: Sequence[int], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add the outputs of some images, in a torchvision detector's format.

        Each holds boxes (N, 4) xyxy, scores (N,) and labels (N,); for segm masks (N, 1, H, W), which
        are thresholded at 0.5, or `rle`, a list of N RLEs; for keypoints keypoints (N, K, 3).

        Raises:
            ValueError: for a label that `categories` lacks, or another number of keypoints than they have.
        """
        for image_id, output in zip(image_ids, outputs, strict=True):
            self.results.extend(to_results(int(image_id), output, self.categories, self.task))

    def evaluate(self, image_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """Compute the metrics in points, 0 to 100: {"bbox": {"AP", ..}}, and "segm" or "keypoints" for those tasks.

        A metric that is undefined, such as APs without small objects, is NaN (`write_json`: null).
        `image_ids` are the images that count, by default all.
        """
        return self.evaluate_by_category(image_ids)[0]

    def per_category(self, image_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """Compute the AP of each category in points, by kind as in `evaluate`, then by name; NaN without objects."""
        return self.evaluate_by_category(image_ids)[1]

    def evaluate_by_category(
        self, image_ids: Sequence[int] | None = None
    ) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
        """Return what `evaluate` and `per_category` return, from one comparison with the truth."""
        comparisons = self._compare(image_ids)
        return (
            {kind: summarize(comparison) for kind, comparison in comparisons.items()},
            {kind: average_precisions(comparison) for kind, comparison in comparisons.items()},
        )

    def _compare(self, image_ids: Sequence[int] | None) -> dict[Task, Any]:
        truth = _ground_truth(self.annotations, self.task, self._sigmas, self._detections)
        kinds: list[Task] = ["bbox"] if self.task == "bbox" else ["bbox", self.task]
        return {
            kind: compare(truth, self.results, kind, self._sigmas, most_detections(kind, self._detections), image_ids)
            for kind in kinds
        }


def most_detections(task: Task, detections: int | None = None) -> int:
    """Return how many detections of each category AP counts in an image: COCO's 100, for keypoints 20; or the given
    number if it is above 100."""
    return detections if detections and detections > max(MOST_DETECTIONS.values()) else MOST_DETECTIONS[task]


def tell_of_crowded_images(content: Content, file: Path, most: int) -> None:
    """Warn where images have more objects than AP counts detections."""
    objects = Counter(annotation["image_id"] for annotation in content.annotations if not annotation["iscrowd"])
    crowded = [count for count in objects.values() if count > most]
    if crowded:
        told = f"{file}: {number_of(len(crowded), 'image')} with more than {most} objects, up to {max(crowded)}"
        way_on = "test.detections (of evaluate-predictions: --detections) raises that"
        log.warning("%s, but %d detections an image and category are counted; %s", told, most, way_on)


def oks_sigmas(keypoints: Keypoints, given: Sequence[float] | None = None) -> NDArray[np.float64]:
    """Return OKS's sigmas (K,), which tell how far from its place each keypoint may be found: the given ones; else
    pycocotools' for COCO's 17 keypoints, and 0.05 for others, which is logged.

    Raises ValueError where the given ones are not one a keypoint, or not above zero.
    """
    if given is not None:
        if len(given) != keypoints.count or min(given) <= 0:
            raise ValueError(f"OKS sigmas {list(given)}, expected {keypoints.count} above zero, one a keypoint")
        return np.array(given, dtype=np.float64)
    if keypoints.names == COCO_KEYPOINTS.names:
        return np.array(Params("keypoints").kpt_oks_sigmas)
    told = "OKS of %d keypoints that are not COCO's: a sigma of %g for each (data.oks_sigmas sets others)"
    log.info(told, keypoints.count, UNIFORM_SIGMA)
    return np.full(keypoints.count, UNIFORM_SIGMA)


def evaluate_results(
    annotations: Path,
    results: list[dict[str, Any]],
    task: Task,
    image_ids: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    detections: int | None = None,
) -> dict[str, float]:
    """Compute COCO's metrics of results in points, 0 to 100; undefined ones are NaN. Arguments as for
    `CocoEvaluator`.

    They are pycocotools' to the last digit. So where results have a `bbox` beside a mask or keypoints, its area
    decides what is small, medium and large. Raises ValueError as `CocoEvaluator` does.
    """
    chosen = _sigmas(annotations, task, sigmas)
    truth = _ground_truth(annotations, task, chosen, detections)
    return summarize(compare(truth, results, task, chosen, most_detections(task, detections), image_ids))


@dataclass(frozen=True)
class PrecisionRecall:
    """Holds precision, 0 to 1, at the recalls 0, 0.01 .. 1: arrays (101,).

    `mean` averages over the categories, by the threshold of IoU (of OKS for keypoints), 0.5 and 0.75; `by_category`
    is at 0.5. Categories without objects are left out.
    """

    mean: dict[float, NDArray[np.float64]]
    by_category: dict[str, NDArray[np.float64]]


def precision_recall(
    annotations: Path,
    results: list[dict[str, Any]],
    task: Task,
    sigmas: Sequence[float] | None = None,
    detections: int | None = None,
) -> PrecisionRecall:
    """Compute the curves whose area is AP, for the task alone. Arguments as for `CocoEvaluator`.

    Raises ValueError as `CocoEvaluator` does, and where the annotations have no objects.
    """
    chosen = _sigmas(annotations, task, sigmas)
    truth = _ground_truth(annotations, task, chosen, detections)
    comparison = compare(truth, results, task, chosen, most_detections(task, detections))
    curves = {name: values for name, values in precisions(comparison).items() if not np.isnan(values).any()}
    if not curves:
        raise ValueError(f"{annotations}: no objects, so there are no precision-recall curves")
    rows = {iou: int(np.argmin(abs(comparison.params.iouThrs - iou))) for iou in (0.5, 0.75)}
    return PrecisionRecall(
        mean={iou: np.mean([values[row] for values in curves.values()], axis=0) for iou, row in rows.items()},
        by_category={name: values[rows[0.5]] for name, values in curves.items()},
    )


def _sigmas(
    annotations: Path, task: Task, given: Sequence[float] | None, expected: Keypoints | None = None
) -> NDArray[np.float64] | None:
    """`oks_sigmas` of the keypoints that the annotations have; None for other tasks."""
    if task != "keypoints":
        return None
    keypoints = read_keypoints(annotations)
    if expected and keypoints.names != expected.names:
        names, wanted = (", ".join(them.names) for them in (keypoints, expected))
        raise ValueError(f"{annotations}: the keypoints are {names}, expected the detector's, {wanted}")
    return oks_sigmas(keypoints, given)


def _ground_truth(
    annotations: Path, task: Task, sigmas: NDArray[np.float64] | None, detections: int | None = None
) -> Any:
    """Make pycocotools' COCO of annotations, with what it needs and datasets other than COCO may lack.

    The annotations are numbered from 1: pycocotools takes a match with annotation 0 for none at all. For keypoints
    only categories that declare them count, as in training, unless none does.
    """
    content = read_content(annotations, task, 0 if sigmas is None else len(sigmas)).sound()
    tell_of_crowded_images(content, annotations, most_detections(task, detections))
    with_keypoints = [c for c in content.categories if c.get("keypoints")]
    categories = with_keypoints if task == "keypoints" and with_keypoints else content.categories
    counted = {category["id"] for category in categories}
    found = [a for a in content.annotations if a["category_id"] in counted]
    truth = [a for a in found if task != "segm" or a["segmentation"]]
    left_out = content.left_out + Counter({WITHOUT_MASK: len(found) - len(truth)})
    for reason, count in left_out.items():
        log.warning("%s: left out of the evaluation: %s (%d)", annotations, reason, count)
    for number, annotation in enumerate(truth, start=1):
        annotation["id"] = number
    images = list(content.images.values())
    return as_coco({"info": {}, "images": images, "annotations": truth, "categories": categories})
