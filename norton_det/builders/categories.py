"""Fits the categories of data to a detector that knows other categories, or whose classes have no names."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from norton_det.data.catalog import UNUSED, Categories
from norton_det.data.matching import Matching, match, seen_by
from norton_det.models.categories import are_named
from norton_det.models.predictors import replace_predictors
from norton_det.names import some

log = logging.getLogger(__name__)
_OF_EACH_CLASS = (
    "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred",
    "roi_heads.mask_predictor.mask_fcn_logits", "head.classification_head.cls_logits",
)  # fmt: skip
"""The layers that have rows for each class."""


def known_categories(detector: Any) -> Categories:
    """Return the categories that a detector says it knows."""
    return Categories(tuple(detector.categories), tuple(detector.category_ids), getattr(detector, "keypoints", None))


def adopt_names(detector: Any, categories: Categories, source: str) -> None:
    """Give a detector whose classes have no names those of the data, if it has as many: a guess, which is logged."""
    if are_named(detector.categories) or len(detector.categories) != len(categories.names):
        return
    named = tuple(f"{label} {name}" for label, name in enumerate(categories.names) if label and name != UNUSED)
    told = "%s does not name its classes: they are taken to be the data's, in this order: %s"
    log.warning(told, source, some(named))
    detector.categories, detector.category_ids = list(categories.names), list(categories.ids)


def fit_categories(detector: Any, categories: Categories, source: str) -> None:
    """Make a detector one for these categories, in place: its predictors keep their weights for the categories that
    it knows by name, and start afresh for the others."""
    adopt_names(detector, categories, source)
    known = known_categories(detector)
    matching = match(known, categories)
    if known.names != categories.names:
        _tell_of_predictors(matching, categories, source)
        before, classes = detector.state_dict(), len(known.names)
        replace_predictors(detector, len(categories.names))
        if matching.labels:
            _take_over(before, detector.state_dict(), {0: 0, **matching.labels}, (classes, len(categories.names)))
    detector.categories, detector.category_ids = list(categories.names), list(categories.ids)


def _tell_of_predictors(matching: Matching, categories: Categories, source: str) -> None:
    if matching.is_complete:
        log.info("%s has the data's categories under other labels: its predictors are rearranged", source)
        return
    kept, afresh = some(tuple(categories.names[label] for label in matching.labels)), some(matching.unknown)
    told = [f"keep what they know of {kept}"] if kept else []
    told += [f"start afresh for {afresh}"] if afresh else []
    log.info("%s: the predictors %s", matching.told("the data", source), " and ".join(told))


def evaluated_categories(known: Categories, data: Categories, source: str) -> Categories:
    """Return the detector's labels with the category ids of the data `source`, and log what differs.

    Raises ValueError naming both if they have no category in common.
    """
    matching = match(known, data)
    if not matching.labels:
        raise ValueError(matching.told(source, "the detector"))
    if not matching.is_complete:
        log.warning("%s: AP is over the categories of the test data", matching.told(source, "the detector"))
    if any(data.ids[label] != known.ids[found] for label, found in matching.labels.items()):
        log.info("%s numbers categories otherwise than the detector: they are matched by name", source)
    return seen_by(known, data, matching)


@torch.no_grad()
def _take_over(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], labels: Mapping[int, int], classes: tuple[int, int]
) -> None:
    """Copy the old weights into a detector whose predictors were replaced.

    Layers with rows for each class get the rows of the classes in `labels`, new label to old one; other layers are
    copied whole. `classes` are the numbers of classes before and after.
    """
    now, old = list(labels), list(labels.values())
    for name, values in after.items():
        if name.rpartition(".")[0] in _OF_EACH_CLASS:
            boxes = 4 if "bbox_pred" in name else 1
            anchors = len(values) // (classes[1] * boxes)  # above 1 in one stage: each has rows of all classes
            rows, known = values.view(anchors, classes[1], -1), before[name].reshape(anchors, classes[0], -1)
            rows[:, now] = known[:, old]
        else:
            values.copy_(before[name])
