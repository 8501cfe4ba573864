"""Computes agreement: a detector's AP against what a reference is sure of, the truth where nobody has labels.

The truth's findings of at least a given score are the objects; the detector's findings of every score are ranked
against them, as in COCO's protocol, and so are the reference's own, which are 100. Categories are matched by name.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from norton_det.data.catalog import Categories
from norton_det.data.matching import match
from norton_det.data.reading import Record, Task
from norton_det.evaluation.coco import most_detections, oks_sigmas
from norton_det.evaluation.comparison import as_coco, average_precisions, compare, summarize
from norton_det.evaluation.matches import f1_by_image, read_matches, resampled_aps
from norton_det.evaluation.results import task_of, to_results
from norton_det.keypoints import COCO_KEYPOINTS

log = logging.getLogger(__name__)
SCORE = 0.5
"""The least score of a reference's finding that is taken as true, unless another one is asked for."""
RESAMPLES = 400
"""How many times the images are drawn anew for the interval."""


@dataclass(frozen=True)
class Findings:
    """Holds what a detector finds on images that are numbered from 0.

    Attributes:
        results: COCO results; `image_id` is the number, `category_id` the label.
        images: the number of images.
        categories: the names by label, and the keypoints.
        task: what is found beside boxes.
    """

    results: list[Record]
    images: int
    categories: Categories
    task: Task


@dataclass(frozen=True)
class TaskAgreement:
    """Holds the agreement in boxes, masks or keypoints, in points, 0 to 100.

    Attributes:
        metrics: AP, AP50, AP75 and, by the objects' size, APs, APm, APl (no APs for keypoints); NaN without objects.
        interval: the range in which AP would lie in 95 % of cases if the images were drawn anew.
        by_category: AP of each category that the reference finds.
        by_image: F1 of what both find of at least the score, matched at an IoU (OKS) of 0.5; 100 if neither finds it.
    """

    metrics: dict[str, float]
    interval: tuple[float, float]
    by_category: dict[str, float]
    by_image: tuple[float, ...]


@dataclass(frozen=True)
class Agreement:
    """Tells how far a detector agrees with a reference.

    Attributes:
        score: the least score of the reference's findings that were taken as true.
        matching_score: the score from which the detector finds as many objects as the reference does from `score`
            on; NaN where one of them finds none.
        found_by_image: how many of them there are on each image.
        found_by_category: how many of them there are in each category.
        tasks: the agreement in boxes and, where both find them, masks or keypoints.
    """

    score: float
    matching_score: float
    found_by_image: tuple[int, ...]
    found_by_category: dict[str, int]
    tasks: dict[Task, TaskAgreement]

    @property
    def found(self) -> int:
        """Return how many findings were taken as true."""
        return sum(self.found_by_image)


def format_points(value: float | None) -> str:
    """Format points of agreement; a dash stands where there is nothing to agree on."""
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def collect(outputs: Iterable[Mapping[str, Any]], categories: Categories) -> Findings:
    """Collect a detector's outputs, torchvision's dictionaries, one for each image; masks become RLE one by one.

    Raises ValueError for a label that `categories` lacks, and another number of keypoints than they have.
    """
    labels = replace(categories, ids=tuple(range(len(categories.names))))
    results: list[Record] = []
    images = 0
    task: Task = "bbox"
    for images, output in enumerate(outputs, start=1):
        task = task_of(output)
        results += to_results(images - 1, output, labels, task)
    return Findings(results, images, categories, task)


def agreement_of(
    reference: Findings,
    detector: Findings,
    score: float = SCORE,
    resamples: int = RESAMPLES,
    seed: int = 0,
    truth: Findings | None = None,
) -> Agreement:
    """Compute how far a detector agrees with a reference on the same images, on which neither was fitted.

    Without a `truth`, the reference's findings are the truth. With one, such as the `consensus` of what the reference
    finds in several views, AP against it is given in shares of the reference's own, which then is 100 too. Only
    categories that both know count; others are named in a warning. The interval comes from `resamples` draws of the
    images, by `seed`.

    Raises ValueError for no common category, other keypoints, and a reference that finds nothing from `score` on.
    """
    if reference.images != detector.images:
        raise ValueError(f"findings on {detector.images} images, expected {reference.images}, the reference's")
    labels = _common_labels(reference.categories, detector.categories)
    seen = (truth or reference).results
    objects = [r for r in seen if r["score"] >= score and r["category_id"] in labels.values()]
    if not objects:
        told = f"the reference finds nothing of a score of at least {score:g} on {reference.images} images"
        raise ValueError(f"{told}: name other images, or a lower score")
    found = [{**r, "category_id": labels[r["category_id"]]} for r in detector.results if r["category_id"] in labels]
    names = {label: reference.categories.names[label] for label in sorted(labels.values())}
    by_image, by_category = (Counter(r[key] for r in objects) for key in ("image_id", "category_id"))

    def measured(task: Task) -> TaskAgreement:
        true = _as_truth(objects, task, reference.images, names)
        sigmas = _common_sigmas(reference.categories, detector.categories) if task == "keypoints" else None
        most = max(most_detections(task), *Counter((r["image_id"], r["category_id"]) for r in objects).values())

        def against_truth(results: list[Record]) -> _Against:
            comparison = compare(true, [r for r in results if _area(r, task)], task, sigmas, most)
            matches = read_matches(comparison)
            aps = np.fromiter(resampled_aps(matches, comparison.params.recThrs, resamples, seed), float)
            by_category = {name: ap for name, ap in average_precisions(comparison).items() if not math.isnan(ap)}
            metrics = {name: value for name, value in summarize(comparison).items() if name.startswith("AP")}
            return _Against(metrics, by_category, aps, tuple(f1_by_image(matches, score)))

        own = against_truth(found)
        if truth is not None:
            own = own.in_shares_of(against_truth([r for r in reference.results if r["category_id"] in names]))
        return TaskAgreement(own.metrics, _interval(own.metrics["AP"], own.resampled), own.by_category, own.by_image)

    tasks: list[Task] = ["bbox"]
    if reference.task == detector.task != "bbox":
        tasks.append(reference.task)
    return Agreement(
        score=score,
        matching_score=_matching_score([r for r in reference.results if r["category_id"] in names], found, score),
        found_by_image=tuple(by_image[image] for image in range(reference.images)),
        found_by_category={name: by_category[label] for label, name in names.items()},
        tasks={task: measured(task) for task in tasks},
    )


def _matching_score(reference: list[Record], detector: list[Record], score: float) -> float:
    """Return the score from which a detector has as many findings as the reference from `score` on."""
    wanted = sum(r["score"] >= score for r in reference)
    ranked = sorted((r["score"] for r in detector), reverse=True)
    return float(ranked[min(wanted, len(ranked)) - 1]) if wanted and ranked else math.nan


@dataclass(frozen=True)
class _Against:
    """Holds a detector's AP against a truth: by metric, by category, and on images drawn anew; and F1 by image."""

    metrics: dict[str, float]
    by_category: dict[str, float]
    resampled: NDArray[np.float64]
    by_image: tuple[float, ...]

    def in_shares_of(self, reference: "_Against") -> "_Against":
        """Return the same in percent of a reference's; NaN where the reference has nothing."""

        def shares(own: Mapping[str, float], whole: Mapping[str, float]) -> dict[str, float]:
            return {name: 100 * value / whole[name] if whole[name] else math.nan for name, value in own.items()}

        with np.errstate(divide="ignore", invalid="ignore"):
            resampled = 100 * self.resampled / reference.resampled
        metrics, by_category = (
            shares(self.metrics, reference.metrics),
            shares(self.by_category, reference.by_category),
        )
        return replace(self, metrics=metrics, by_category=by_category, resampled=resampled)


def _interval(ap: float, resampled: NDArray[np.float64]) -> tuple[float, float]:
    """Return the middle 95 % of AP on images drawn anew, moved to lie around AP. (In rare categories, an image that
    is drawn twice raises its own AP.)"""
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled):
        return math.nan, math.nan
    low, high = np.clip(ap + np.percentile(resampled, [2.5, 97.5]) - resampled.mean(), 0, max(100, ap)).tolist()
    return low, high


def _common_labels(reference: Categories, detector: Categories) -> Mapping[int, int]:
    """Return the detector's labels -> the reference's, of the categories that both know."""
    matching = match(reference, detector)
    told = matching.told("the detector", "the reference")
    if not matching.labels:
        raise ValueError(told)
    if not matching.is_complete:
        log.warning("%s: agreement is over those that both know", told)
    return matching.labels


def _common_sigmas(reference: Categories, detector: Categories) -> NDArray[np.float64]:
    """Return OKS's sigmas of the keypoints that both find."""
    known, other = (each.keypoints or COCO_KEYPOINTS for each in (reference, detector))
    if known.names != other.names:
        names, wanted = (", ".join(each.names) for each in (other, known))
        raise ValueError(f"the detector's keypoints are {names}, expected the reference's, {wanted}")
    return oks_sigmas(known)


def _as_truth(objects: list[Record], task: Task, images: int, names: Mapping[int, str]) -> Any:
    """Make the reference's findings a dataset of pycocotools, in which every keypoint is visible."""
    sound = [(r, area) for r in objects if (area := _area(r, task))]
    annotations = [
        {**r, "id": number, "area": area, "iscrowd": 0, "num_keypoints": len(r.get("keypoints", [])) // 3}
        for number, (r, area) in enumerate(sound, start=1)
    ]
    categories = [{"id": label, "name": name} for label, name in names.items()]
    listed = [{"id": image, "height": 0, "width": 0} for image in range(images)]  # sizes are asked for, not used
    return as_coco({"images": listed, "annotations": annotations, "categories": categories})


def _area(result: Record, task: Task) -> float:
    """Return the pixels of a finding's mask, or else of its box; one without area meets nothing, not even itself."""
    return float(rle.area(result["segmentation"]) if task == "segm" else result["bbox"][2] * result["bbox"][3])
