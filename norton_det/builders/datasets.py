"""Builds the data of a configuration that training and evaluation read, and checks its files before either begins."""

import logging
from typing import Any

from norton_det.builders.categories import evaluated_categories
from norton_det.builders.resolve import resolve_categories, resolve_task
from norton_det.config import Config
from norton_det.data.catalog import Categories, DatasetFiles
from norton_det.data.coco import CocoDataset
from norton_det.data.inspection import require_images
from norton_det.data.loaders import evaluation_loader
from norton_det.data.reading import Content
from norton_det.data.transforms import JITTER_LONGEST, evaluation_transforms, output_size, training_transforms
from norton_det.engine import distributed
from norton_det.evaluation.coco import CocoEvaluator

log = logging.getLogger(__name__)


def build_training_dataset(
    config: Config, files: DatasetFiles, categories: Categories, content: Content | None = None
) -> CocoDataset:
    """Build the training images and targets, augmented as configured, from `content` if the JSON has been read.

    Raises ValueError as `CocoDataset` does.
    """
    task, preset, keypoints = resolve_task(config), config.data.augmentation, categories.keypoints
    if keypoints and preset != "none" and keypoints.flip == tuple(range(keypoints.count)):
        log.info("no keypoints change places in a mirrored image: data.flip_pairs names those that should")
    transforms = training_transforms(preset, task, keypoints)
    return CocoDataset(
        files,
        categories,
        task,
        training=True,
        transforms=transforms,
        keep_empty=config.data.keep_empty,
        seed=config.seed,
        content=content,
    )


def build_test_dataset(config: Config, files: DatasetFiles, content: Content | None = None) -> CocoDataset:
    """Build the test images, from `content` if the JSON has been read. Raises ValueError as `CocoDataset` does."""
    categories, task = resolve_categories(config, files), resolve_task(config)
    return CocoDataset(files, categories, task, training=False, transforms=evaluation_transforms(), content=content)


def require_files(config: Config, dataset: CocoDataset, files: DatasetFiles, training: bool) -> None:
    """Check every image's file before a long run begins. Raises ValueError as `require_images` does."""
    tolerated = config.data.damaged_images if training else 0
    require_images(dataset, files.name, tolerated, show_progress=distributed.is_main())


def shrink_to_trained_size(config: Config, dataset: CocoDataset, detector: Any) -> None:
    """Have images that are larger than the detector's training size shrunk as they are read."""
    transform = detector.transform
    if output_size(config.data.augmentation) is None:
        dataset.shrink(max(transform.min_size), transform.max_size)
    else:
        dataset.shrink(JITTER_LONGEST, JITTER_LONGEST)


def build_evaluator(config: Config, files: DatasetFiles, known: Categories) -> CocoEvaluator:
    """Build the evaluator that computes AP on the test set from the outputs of a detector with these categories.

    Raises ValueError as `CocoEvaluator` and `evaluated_categories` do.
    """
    categories = evaluated_categories(known, resolve_categories(config, files), str(files.annotations))
    test, sigmas = config.test, config.data.oks_sigmas
    return CocoEvaluator(files.annotations, categories, resolve_task(config), sigmas, test.detections)


def build_evaluation_loader(config: Config, dataset: CocoDataset) -> Any:
    """Build the loader of this process's share of the test images."""
    return evaluation_loader(
        dataset,
        batch_size=config.test.batch_size,
        workers=config.data.workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
