import itertools
import json
import os
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from norton_det.data.catalog import DatasetFiles, read_categories
from norton_det.data.coco import CocoDataset
from norton_det.data.images import DamagedImageError
from norton_det.data.loaders import (
    Batch,
    TrainingBatchSampler,
    WithReplacements,
    batch_loader,
    epoch_length,
    evaluation_loader,
    training_loader,
)
from norton_det.data.transforms import training_transforms

GROUPS = np.array([0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1])  # 4 and 9


def steps(count: int, **more: Any) -> list[list[tuple[int, int]]]:
    options: dict[str, Any] = {"groups": GROUPS, "images_per_step": 4, "seed": 3} | more
    return list(itertools.islice(TrainingBatchSampler(**options), count))


def test_a_step_has_one_group_and_all_its_images() -> None:
    for step in steps(60):
        assert len(step) == 4
        assert len({GROUPS[index] for _, index in step}) == 1


def test_every_image_comes_once_an_epoch_and_leftovers_are_carried() -> None:
    count = 60
    seen = Counter(image for step in steps(count) for image in step)
    assert set(seen.values()) == {1}
    last = max(epoch for epoch, _ in seen)
    missing = {(e, i) for e in range(last) for i in range(len(GROUPS))} - set(seen)
    assert len(missing) < 2 * 4  # what still waits in the two bins, however many epochs went by
    assert last >= 15


def test_epochs_and_seeds_differ_but_repeat() -> None:
    def order(seed: int) -> list[tuple[int, ...]]:
        alone = steps(39, groups=np.zeros(13), images_per_step=1, seed=seed)
        indices = [step[0][1] for step in alone]
        return [tuple(indices[start : start + 13]) for start in (0, 13, 26)]

    assert order(0) == order(0)
    assert len({*order(0), *order(1)}) == 6
    assert all(sorted(epoch) == list(range(13)) for epoch in order(0))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_steps_of_one(processes: int) -> None:
    shares = [steps(30, rank=rank, world_size=processes) for rank in range(processes)]
    joined = [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)]
    assert joined == steps(30)
    assert {len(batch) for share in shares for batch in share} == {4 // processes}


@pytest.mark.parametrize("start", [0, 1, 7, 29])
def test_resuming_skips_what_was_taken(start: int) -> None:
    assert steps(10, start=start) == steps(10 + start)[start:]


def test_a_dataset_smaller_than_a_step_works() -> None:
    assert [len(step) for step in steps(3, groups=np.array([0, 1]), images_per_step=8)] == [8, 8, 8]


def test_impossible_samplers_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        TrainingBatchSampler(np.array([]), 4, seed=0)
    with pytest.raises(ValueError, match="5 images a step, expected a positive multiple of 2"):
        TrainingBatchSampler(GROUPS, 5, seed=0, world_size=2)
    with pytest.raises(ValueError, match="0 images a step"):
        TrainingBatchSampler(GROUPS, 0, seed=0)


@pytest.fixture
def files(tmp_path: Path) -> DatasetFiles:
    """Eleven images with ids 10 to 20, alternately 24 x 16 and 16 x 24."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for id in range(10, 21):
        width, height = (24, 16) if id % 2 else (16, 24)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{id}.png")
        images.append({"id": id, "file_name": f"{id}.png", "width": width, "height": height})
        annotations.append({"id": id, "image_id": id, "category_id": 5, "bbox": [1, 2, 9, 8], "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return DatasetFiles("a", tmp_path, tmp_path / "a.json", keeps_ids=False)


def read(files: DatasetFiles, training: bool) -> CocoDataset:
    transforms = training_transforms("photometric", "bbox")
    return CocoDataset(files, read_categories(files, "bbox"), "bbox", training, transforms, seed=5)


def train_on(dataset: CocoDataset, **options: Any) -> Iterator[Batch]:
    options = {"batch_size": 2, "seed": 1, "workers": 0} | options
    return (batch for batch, _ in training_loader(dataset, **options))


def flat(batches: Any) -> list[torch.Tensor]:
    return [value for images, targets in batches for value in (*images, *(t["boxes"] for t in targets))]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_sees_the_same_pixels(files: DatasetFiles, workers: int) -> None:
    dataset = read(files, training=True)
    whole = list(itertools.islice(train_on(dataset), 12))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    tail = list(itertools.islice(train_on(dataset, workers=workers, start=7), 5))
    assert torch.equal(torch.get_rng_state(), state)
    for expected, found in zip(flat(whole[7:]), flat(tail), strict=True):
        assert torch.equal(expected, found)
    for images, targets in whole:
        assert len({image.shape for image in images}) == 1  # one orientation
        assert {type(value) for target in targets for value in target.values()} == {torch.Tensor}
        assert {type(image) for image in images} == {torch.Tensor} and images[0].dtype == torch.float32


def test_groups_can_be_mixed(files: DatasetFiles) -> None:
    batches = train_on(read(files, training=True), batch_size=3, group_by_aspect_ratio=False)
    shapes = [{image.shape for image in images} for images, _ in itertools.islice(batches, 10)]
    assert any(len(shape) == 2 for shape in shapes)


def test_two_processes_train_on_what_one_does(files: DatasetFiles) -> None:
    def ids(count: int, **more: int) -> list[list[int]]:
        batches = train_on(read(files, training=True), **more)
        return [[t["image_id"].item() for t in targets] for _, targets in itertools.islice(batches, count)]

    shares = [ids(9, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    assert [first + second for first, second in zip(*shares, strict=True)] == ids(9, batch_size=4)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_deals_whole_batches_and_loses_none(files: DatasetFiles, processes: int) -> None:
    dataset = read(files, training=False)
    dealt = []
    for rank in range(processes):
        loader = evaluation_loader(dataset, batch_size=3, workers=0, rank=rank, world_size=processes)
        dealt.append([[t["image_id"].item() for t in targets] for _, targets in loader])
        assert len(loader) == len(dealt[-1])
    batches = [[10, 11, 12], [13, 14, 15], [16, 17, 18], [19, 20]]
    assert dealt == [batches[rank::processes] for rank in range(processes)]


def test_more_processes_than_batches(files: DatasetFiles) -> None:
    dataset = read(files, training=False)
    assert list(evaluation_loader(dataset, batch_size=11, workers=0, rank=1, world_size=2)) == []


def damage(files: DatasetFiles, *ids: int) -> None:
    for id in ids:
        path = files.images / f"{id}.png"
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_image_takes_the_place_of_a_damaged_one(files: DatasetFiles, workers: int) -> None:
    whole = list(itertools.islice(train_on(read(files, training=True)), 30))
    damage(files, 13, 14)
    loader = training_loader(
        read(files, training=True), batch_size=2, seed=1, workers=workers, start=3, damaged_images=2
    )
    tail = list(itertools.islice(loader, 27))
    expected = [[t["image_id"].item() for t in targets] for _, targets in whole[3:]]
    found = [[t["image_id"].item() for t in targets] for (_, targets), _ in tail]
    assert found == [[15 if id in (13, 14) else id for id in ids] for ids in expected]
    lines = [[Path(line.split(": not a readable image (")[0]).stem for line in damaged] for _, damaged in tail]
    assert lines == [[name for id in ids for name in {13: ["13", "14"], 14: ["14"]}.get(id, [])] for ids in expected]
    for (images, targets), (others, _), ids in zip(whole[3:], (batch for batch, _ in tail), expected, strict=True):
        if not {13, 14} & {*ids}:
            assert all(torch.equal(a, b) for a, b in zip(images, others, strict=True)) and len(targets) == 2


@pytest.mark.parametrize("limit", [0, 10, 99])
def test_a_dataset_with_too_much_damage_is_an_error_not_a_search_without_end(files: DatasetFiles, limit: int) -> None:
    damage(files, *range(10, 21))
    loader = training_loader(read(files, training=True), batch_size=1, seed=1, workers=0, damaged_images=limit)
    with pytest.raises(DamagedImageError, match=r"\d\d\.png: not a readable image"):
        next(iter(loader))


def test_each_image_is_tried_once_in_a_samples_place_as_its_epoch_has_it() -> None:
    asked = []

    class Damaged(Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, key: Any) -> Any:
            asked.append(key)
            raise DamagedImageError("all of them")

    with pytest.raises(DamagedImageError):
        WithReplacements(Damaged(), limit=99)[7, 1]
    assert asked == [(7, 1), (7, 2), (7, 0)]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_stops_at_an_image_that_is_damaged_or_gone(files: DatasetFiles, workers: int) -> None:
    damage(files, 14)
    batches = iter(evaluation_loader(read(files, training=False), batch_size=2, workers=workers))
    assert [len(next(batches)[0]) for _ in range(2)] == [2, 2]
    with pytest.raises(DamagedImageError, match=r"^\S+14\.png: not a readable image \([^\n]*\)$"):
        next(batches)
    (files.images / "10.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"^no image file '[^\n]*10\.png'$"):
        next(iter(evaluation_loader(read(files, training=False), batch_size=2, workers=workers)))


def test_a_batch_that_shared_memory_has_no_room_for_ends_the_reading(
    files: DatasetFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    dataset = read(files, training=False)
    assert len(list(evaluation_loader(dataset, batch_size=2, workers=0))) > 0
    with pytest.raises(OSError, match=r"--shm-size.*data\.workers=0"):
        list(evaluation_loader(dataset, batch_size=2, workers=1))


def test_a_batch_may_have_more_tensors_than_files_may_be_open() -> None:
    """Each that another process read is an open file here until it is dropped."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    samples: Any = [[torch.ones(2) for _ in range(100)] for _ in range(3)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, limits[1]))
        batches = list(batch_loader(samples, [[0], [1], [2]], 1, lambda batch: batch[0]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [len(batch) for batch in batches] == [100] * 3


def test_epoch_length(files: DatasetFiles) -> None:
    dataset = read(files, training=True)
    assert [epoch_length(dataset, images) for images in (1, 4, 11, 12)] == [11, 2, 1, 1]
