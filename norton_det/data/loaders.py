"""Decides which images form a batch, in which order and on which process; a resumed training sees the same."""

import itertools
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sized
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from norton_det.data.coco import CocoDataset
from norton_det.data.images import DamagedImageError
from norton_det.data.transforms import Target, to_model_targets

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]
MANY_FILES = 65536
Collate = Callable[[list[Any]], Any]


class TrainingBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yields batches of (epoch, index) without end: this process's share of each step.

    Every epoch is a permutation drawn from (seed, epoch). Images are put into the bin of their group,
    and a bin that holds a whole step's images becomes the next step, so that its images are all of one group. What
    is left in a bin opens the next epoch. The steps depend on `images_per_step` only, not on the number of
    processes that share one.

    Args:
        groups: (n,) integers, the group of each image.
        images_per_step: images in one step of all processes together.
        seed: the permutations' seed.
        start: steps already taken.
        rank: this process's number.
        world_size: number of processes.
        accumulation: batches that make a process's share of a step; `accumulation * world_size` must divide
            `images_per_step`.

    Raises:
        ValueError: there are no images, or a step cannot be divided so.
    """

    def __init__(
        self,
        groups: np.ndarray[Any, np.dtype[Any]],
        images_per_step: int,
        *,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
    ) -> None:
        if len(groups) == 0:
            raise ValueError("no images to train on, expected at least one")
        parts = world_size * accumulation
        if images_per_step < 1 or images_per_step % parts:
            raise ValueError(f"{images_per_step} images a step, expected a positive multiple of {parts}")
        self.groups = groups.tolist()
        self.images_per_step = images_per_step
        self.seed = seed
        self.start = start
        size = images_per_step // parts
        firsts = range(rank * accumulation * size, (rank + 1) * accumulation * size, size)
        self.batches = [slice(first, first + size) for first in firsts]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in itertools.islice(self._steps(), self.start, None):
            yield from (step[batch] for batch in self.batches)

    def _steps(self) -> Iterator[list[tuple[int, int]]]:
        bins: dict[int, list[tuple[int, int]]] = {group: [] for group in self.groups}
        for epoch in itertools.count():
            for index in np.random.default_rng((self.seed, epoch)).permutation(len(self.groups)).tolist():
                group = self.groups[index]
                bins[group].append((epoch, index))
                if len(bins[group]) == self.images_per_step:
                    yield bins[group]
                    bins[group] = []


class WithReplacements(Dataset[tuple[Any, list[str]]]):
    """Reads samples of a dataset by (epoch, index); a sample with a damaged image is replaced by the next one.

    With each sample come lines on the damaged images that were skipped. Raises DamagedImageError if more than `limit`
    would have to be skipped, or all of the dataset.
    """

    def __init__(self, dataset: Dataset[Any], limit: int) -> None:
        self.dataset, self.count = dataset, len(dataset)  # type: ignore[arg-type]
        self.limit = min(limit, self.count - 1)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, list[str]]:
        epoch, index = key
        damaged: list[str] = []
        while True:
            try:
                return self.dataset[epoch, (index + len(damaged)) % self.count], damaged
            except DamagedImageError as error:
                if len(damaged) >= self.limit:
                    raise
                damaged.append(str(error))


def training_loader(
    dataset: CocoDataset,
    *,
    batch_size: int,
    seed: int,
    workers: int,
    damaged_images: int = 0,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    group_by_aspect_ratio: bool = True,
) -> DataLoader[Any]:
    """Return a loader of training batches without end.

    Each is a pair of the batch, (list of (3, H, W) images, list of targets), and lines on damaged images that were
    replaced.

    Args:
        dataset: the dataset to train on.
        batch_size: images in a batch.
        seed: seed of the order. The augmentation has the dataset's seed.
        workers: loading processes; 0 loads in this one.
        damaged_images: how many damaged images may be skipped for one sample, see `WithReplacements`.
        start: steps already taken, which are skipped without loading an image.
        rank: this process's number, of `world_size` processes.
        world_size: number of processes that share each step.
        accumulation: batches that make a process's share of a step.
        group_by_aspect_ratio: keeps landscape and portrait images in different steps, which saves padding.
    """
    height, width = dataset.sizes.T
    landscape = (width > height) & group_by_aspect_ratio
    sampler = TrainingBatchSampler(
        landscape,
        batch_size * world_size * accumulation,
        seed=seed,
        start=start,
        rank=rank,
        world_size=world_size,
        accumulation=accumulation,
    )
    return training_batches(dataset, sampler, workers, collate_detection, damaged_images)


def training_batches(
    dataset: Dataset[Any], sampler: TrainingBatchSampler, workers: int, collate: Collate, damaged_images: int
) -> DataLoader[Any]:
    """Return a loader of the sampler's batches, collated, each in a pair with lines on damaged images.

    See `WithReplacements`.
    """
    return batch_loader(
        WithReplacements(dataset, damaged_images), sampler, workers, partial(_collate_samples, collate)
    )


def _collate_samples(collate: Collate, samples: list[tuple[Any, list[str]]]) -> tuple[Any, list[str]]:
    return collate([sample for sample, _ in samples]), [line for _, damaged in samples for line in damaged]


def collate_detection(samples: list[tuple[Tensor, Target]]) -> Batch:
    """Collate samples to a detector's batch: a list of images, which may differ in size, and a list of targets."""
    images = [image.as_subclass(Tensor) for image, _ in samples]
    return images, [to_model_targets(target) for _, target in samples]


def evaluation_loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    collate: Collate = collate_detection,
) -> DataLoader[Any]:
    """Return a loader of every image once, in order: batch i of (images, targets) goes to process i % world_size."""
    count = len(dataset)  # type: ignore[arg-type]
    batches = [list(range(count)[first : first + batch_size]) for first in range(0, count, batch_size)]
    return batch_loader(dataset, batches[rank::world_size], workers, collate)


def epoch_length(dataset: Sized, images_per_step: int) -> int:
    """Return the number of whole steps in an epoch, at least one. Raises ValueError for a step without images."""
    if images_per_step < 1:
        raise ValueError(f"{images_per_step} images a step, expected at least one")
    return max(1, len(dataset) // images_per_step)


class _WholeBatches(Dataset[Any]):
    """Reads batches of a dataset, collated, by lists of keys; returns the error in place of an unreadable one."""

    def __init__(self, dataset: Dataset[Any], collate: Collate) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, keys: list[Any]) -> Any:
        try:
            return self.collate([self.dataset[key] for key in keys])
        except (ValueError, OSError) as error:
            return error


class _Raising(DataLoader[Any]):
    """Raises the errors that come in place of batches.

    If a loading process raised them itself, its traceback would become part of the message.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            yield batch


def batch_loader(dataset: Dataset[Any], batches: Any, workers: int, collate: Collate) -> DataLoader[Any]:
    """Return a loader of `batches`, lists of keys, whose samples `workers` processes read and collate.

    A ValueError or OSError of reading is raised when its batch's turn comes.
    """
    if workers:
        _let_many_files_be_open()
    return _Raising(
        _WholeBatches(dataset, collate),
        sampler=batches,
        batch_size=None,  # they are batches already
        num_workers=workers,
        collate_fn=_handed_over,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available(),
        # fork: the dataset's arrays stay shared with the workers instead of being copied to each
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        # without a generator of its own a loader draws from the global one; the samples do not depend on it
        generator=torch.Generator(),
    )


def _handed_over(batch: Any) -> Any:
    """Move a batch into the memory that a loading process shares with the main one; return the error if that is full.

    torch does the same, but in a thread whose errors get lost: the main process would wait for ever.
    """
    if get_worker_info() is None:
        return batch
    try:
        for tensor in tree_leaves(batch):
            if isinstance(tensor, Tensor):
                tensor.share_memory_()
    except RuntimeError as error:
        return OSError(
            "a batch of images does not fit into the shared memory (/dev/shm): enlarge it (docker run --shm-size),"
            f" or load without other processes (data.workers=0) ({error})"
        )
    return batch


def _let_many_files_be_open() -> None:
    """Raise this process's limit of open files as far as allowed: a tensor from a loading process is an open file."""
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if most == resource.RLIM_INFINITY else min(most, MANY_FILES)
    if least != resource.RLIM_INFINITY and least < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _ignore_signals(worker: int) -> None:
    """Ignore signals that go to the whole group of processes: the main one answers them and stops its workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
