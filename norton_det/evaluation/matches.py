"""Reads which detections of a comparison were right, for AP of images drawn anew and F1 of each image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Matches:
    """Holds a category's D detections on I images, as pycocotools matched them with the truth at T thresholds of IoU.

    Attributes:
        scores: (D,).
        places: the indices of each image's detections.
        hits: (T, D), whether a detection met an object.
        objects: (I,), how many objects there are in each image.
    """

    scores: NDArray[np.float64]
    places: list[NDArray[np.int64]]
    hits: NDArray[np.bool_]
    objects: NDArray[np.int64]

    def precisions(self, images: NDArray[np.int64], recalls: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the precision (T, R) at the recalls, on these images, each as often as it is named.

        It is what pycocotools' `accumulate` computes; None where the images have no objects.
        """
        objects = self.objects[images].sum()
        if not objects:
            return None
        found = np.concatenate([self.places[image] for image in images])
        found = found[np.argsort(-self.scores[found], kind="mergesort")]
        hits = self.hits[:, found].cumsum(axis=1)
        precision = hits / (np.arange(1, len(found) + 1) + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or a higher one
        best = np.pad(best, ((0, 0), (0, 1)))  # none at recalls that are not reached
        return np.stack([row[np.searchsorted(hit / objects, recalls)] for row, hit in zip(best, hits, strict=True)])


def read_matches(comparison: Any) -> list[Matches]:
    """Return the matches of each category, over objects of all sizes, of a COCOeval that has been run.

    Its truth must have no crowds and no other objects that do not count.
    """
    params = comparison.params
    count = len(params.imgIds)
    starts = range(0, len(comparison.evalImgs), count * len(params.areaRng))  # by category, size (all first), image
    return [_read(comparison.evalImgs[start : start + count], len(params.iouThrs)) for start in starts]


def _read(images: Sequence[dict[str, Any] | None], thresholds: int) -> Matches:
    """Read the matches of one category; None stands for an image with neither objects nor detections."""
    nothing: dict[str, Any] = {"dtScores": [], "dtMatches": np.zeros((thresholds, 0)), "gtIds": []}
    told = [image or nothing for image in images]
    ends = np.cumsum([len(image["dtScores"]) for image in told])
    return Matches(
        scores=np.concatenate([image["dtScores"] for image in told]),
        places=np.split(np.arange(ends[-1]), ends[:-1]),
        hits=np.concatenate([image["dtMatches"] for image in told], axis=1) > 0,
        objects=np.array([len(image["gtIds"]) for image in told]),
    )


def ap_of(matches: Sequence[Matches], images: NDArray[np.int64], recalls: NDArray[np.float64]) -> float:
    """Compute the AP in points on these images, each as often as it is named; NaN where they have no objects."""
    found = [values for each in matches if (values := each.precisions(images, recalls)) is not None]
    return float(100 * np.mean(found)) if found else float("nan")


def resampled_aps(
    matches: Sequence[Matches], recalls: NDArray[np.float64], resamples: int, seed: int
) -> Iterator[float]:
    """Yield `resamples` times the AP of images drawn with replacement, as many as there are."""
    rng = np.random.default_rng(seed)
    count = len(matches[0].objects)
    for _ in range(resamples):
        yield ap_of(matches, np.sort(rng.integers(count, size=count)), recalls)


def f1_by_image(matches: Sequence[Matches], score: float) -> tuple[float, ...]:
    """Compute the F1 in points of each image's detections of at least this score, at the lowest threshold of IoU.

    It is 2 hits / (objects + detections), and 100 where there are neither.
    """
    hits = np.zeros(len(matches[0].objects))
    total = np.zeros_like(hits)
    for each in matches:
        taken = each.scores >= score
        hits += [np.count_nonzero((each.hits[0] & taken)[place]) for place in each.places]
        total += each.objects + [np.count_nonzero(taken[place]) for place in each.places]
    return tuple((100 * np.divide(2 * hits, total, out=np.ones_like(hits), where=total > 0)).tolist())
