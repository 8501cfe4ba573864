"""Checks a dataset before days of training, by a run's own rules: what it reads, leaves out, warns of and refuses."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from norton_det.builders.categories import fit_categories
from norton_det.builders.datasets import build_evaluator, build_test_dataset, build_training_dataset
from norton_det.builders.resolve import resolve_categories, resolve_dataset, resolve_task, starting_weights
from norton_det.config import Config
from norton_det.data.catalog import Categories, DatasetFiles
from norton_det.data.inspection import inspect_images
from norton_det.data.reading import Content, read_content
from norton_det.evaluation.coco import most_detections, tell_of_crowded_images
from norton_det.models.persistence import detector_from_weights
from norton_det.names import some

SIZES = {"small": 32**2, "medium": 96**2, "large": float("inf")}
"""Upper limits of the areas of COCO's sizes, in square pixels."""


@dataclass
class Health:
    """Holds what was found in a dataset, plain types.

    Attributes:
        annotations: the path of the JSON.
        images: how many images a run reads.
        objects: how many objects the JSON has, by category.
        sizes: how many objects are small, medium and large, by COCO's limits of their areas.
        left_out: how many objects and images a run leaves out, by reason.
        notes: what a run logs, or what will lower its numbers.
        problems: why a run is refused.
    """

    annotations: str
    images: int = 0
    objects: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_data(config: Config, pixels: bool = True) -> dict[str, Health]:
    """Check all that a run of this configuration reads of its two datasets, "train" and "test".

    Without `pixels` only the header of each image is read. What a run would be refused for is a problem of the
    result, and raises nothing.
    """
    found = {split: Health(_name(getattr(config.data, split))) for split in ("train", "test")}
    known: dict[str, Categories] = {}
    paths: dict[str, set[Path]] = {}
    for split, health in found.items():
        with _listening(health):
            files = resolve_dataset(config, split)
            known[split] = resolve_categories(config, files)
            paths[split] = _check(config, files, known[split], split, health, pixels)
    if "train" in known:
        with _listening(found["train"]):
            _check_weights(config, known["train"])
    if len(known) == 2:
        with _listening(found["test"]):
            build_evaluator(config, resolve_dataset(config, "test"), known["train"])
    if len(paths) == 2 and (both := paths["train"] & paths["test"]):
        found["test"].notes.append(f"test images that are trained on too: {len(both)}, such as {min(both)}")
    return found


def _name(dataset: Any) -> str:
    return dataset if isinstance(dataset, str) else dataset.annotations


@contextmanager
def _listening(health: Health) -> Iterator[None]:
    """Add what is logged inside the context to the notes, and an error to the problems."""
    log, ear = logging.getLogger("norton_det"), _Ear(health.notes)
    log.addHandler(ear)
    log.propagate = False
    try:
        yield
    except (ValueError, OSError) as error:
        health.problems.append(str(error))
    finally:
        log.removeHandler(ear)
        log.propagate = True


class _Ear(logging.Handler):
    def __init__(self, notes: list[str]) -> None:
        super().__init__()
        self.notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        self.notes.append(record.getMessage())


def _check(
    config: Config, files: DatasetFiles, categories: Categories, split: str, health: Health, pixels: bool
) -> set[Path]:
    """Fill in what is found in a JSON and its images, and return the images' paths."""
    task, training = resolve_task(config), split == "train"
    content = read_content(files.annotations, task, categories.keypoints.count if categories.keypoints else 0)
    health.annotations = str(files.annotations)
    health.problems += content.problems
    _count(content, categories, health)
    tell_of_crowded_images(content, files.annotations, most_detections(task, config.test.detections))
    rest = replace(content, problems=[])
    if training:
        dataset = build_training_dataset(config, files, categories, rest)
    else:
        dataset = build_test_dataset(config, files, rest)
    health.images, health.left_out = len(dataset), dataset.counts
    found = inspect_images(dataset, pixels=pixels)
    tolerated = config.data.damaged_images if training else 0
    health.problems += found.problems(tolerated)
    health.notes += found.notes(files.name, tolerated)
    return {path.resolve() for path in dataset.paths}


def _count(content: Content, categories: Categories, health: Health) -> None:
    objects = Counter(annotation["category_id"] for annotation in content.annotations)
    health.objects = {categories.names[label]: objects[id] for id, label in categories.labels.items()}
    below = {name: sum(a["area"] < limit for a in content.annotations) for name, limit in SIZES.items()}
    smaller = [0, *below.values()]
    health.sizes = {name: count - less for (name, count), less in zip(below.items(), smaller, strict=False)}
    if nothing := tuple(name for name, count in health.objects.items() if not count):
        health.notes.append(f"{health.annotations}: no object of {some(nothing)}")
    outside = [a.get("id") for a in content.annotations if _leaves(a["bbox"], content.images[a["image_id"]])]
    if outside:
        told = f"boxes that reach more than a pixel out of their image: {len(outside)}, as annotation {outside[0]}'s"
        health.notes.append(f"{health.annotations}: {told}; they should be [x, y, width, height] in pixels")


def _leaves(box: Sequence[float], image: Mapping[str, Any]) -> bool:
    x, y, width, height = box
    return min(x, y) < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1


def _check_weights(config: Config, categories: Categories) -> None:
    """Log what of a detector's weights fits the categories; raise ValueError for a file that a run refuses."""
    if config.model.weights != "none":
        weights = starting_weights(config)
        assert weights is not None
        fit_categories(detector_from_weights(weights), categories, weights.source)
