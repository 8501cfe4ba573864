import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1

from norton_det.data.imagefolder import LabelledImages, classification_batches, classification_evaluation_loader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of `ant` and six of `bee`, 24 to 40 pixels wide, one of them grey and one with a palette."""
    rng = np.random.default_rng(0)
    for name, count in (("bee", 6), ("ant", 5)):
        (tmp_path / name).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (32, 24 + 3 * number, 3), dtype=np.uint8)
            mode = {0: "L", 1: "P"}.get(number, "RGB")
            Image.fromarray(pixels).convert(mode).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_classes_are_sorted_and_images_normalised(folder: Path) -> None:
    dataset = LabelledImages(folder, training=False, size=28)
    assert dataset.classes == ["ant", "bee"]
    assert [dataset[index][1] for index in range(len(dataset))] == [0] * 5 + [1] * 6
    image, _ = dataset[7]
    assert type(image) is torch.Tensor and image.shape == (3, 28, 28) and image.dtype == torch.float32


def test_evaluation_sees_what_torchvisions_own_recipe_makes(folder: Path) -> None:
    recipe = v1.Compose(
        [
            v1.Resize(32, antialias=True),  # 28 * 256 / 224
            v1.CenterCrop(28),
            v1.ToTensor(),
            v1.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    dataset = LabelledImages(folder, training=False, size=28)
    paths = [folder / "ant" / f"{n}.png" for n in range(5)] + [folder / "bee" / f"{n}.png" for n in range(6)]
    for index, path in enumerate(paths):
        expected = recipe(Image.open(path).convert("RGB"))
        # a step of a grey level: PIL and tensors round the resized pixels a little differently
        assert (dataset[index][0] - expected).abs().max() <= 1.01 / 255 / 0.224


def test_augmentation_depends_on_seed_epoch_and_index_alone(folder: Path) -> None:
    dataset = LabelledImages(folder, training=True, size=16, seed=1)
    state = torch.get_rng_state()
    first = dataset[3, 4][0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(dataset[3, 4][0], first)
    assert not torch.equal(dataset[2, 4][0], first)
    assert not torch.equal(LabelledImages(folder, training=True, size=16, seed=2)[3, 4][0], first)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_sees_the_same_and_processes_share_it(folder: Path, workers: int) -> None:
    dataset = LabelledImages(folder, training=True, size=16, seed=1)
    stream = classification_batches(dataset, images_per_step=4, seed=1, workers=0)
    whole = [batch for batch, _ in itertools.islice(stream, 7)]
    assert Counter(label for _, labels in whole[:5] for label in labels.tolist())[0] in (9, 10)  # of 20 of 22
    for rank in range(2):
        tail = classification_batches(
            dataset, images_per_step=4, seed=1, workers=workers, start=3, rank=rank, world_size=2
        )
        found = (batch for batch, _ in itertools.islice(tail, 4))
        for (images, labels), (expected, expected_labels) in zip(found, whole[3:], strict=True):
            assert torch.equal(images, expected[2 * rank : 2 * rank + 2])
            assert torch.equal(labels, expected_labels[2 * rank : 2 * rank + 2])


def test_evaluation_deals_every_image_once(folder: Path) -> None:
    dataset = LabelledImages(folder, training=False, size=16)
    dealt = [
        [labels.tolist() for _, labels in classification_evaluation_loader(dataset, batch_size=4, workers=0, **share)]
        for share in ({"rank": 0, "world_size": 2}, {"rank": 1, "world_size": 2})
    ]
    assert dealt == [[[0, 0, 0, 0], [1, 1, 1]], [[0, 1, 1, 1]]]


def test_hidden_files_and_folders_are_passed_by(folder: Path) -> None:
    expected = len(LabelledImages(folder, training=False, size=8))
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    (folder / ".ipynb_checkpoints").mkdir()
    (classes[0] / "._photo.jpg").write_bytes(b"\0\5\26\7")
    found = LabelledImages(folder, training=False, size=8)
    assert found.classes == [path.name for path in classes] and len(found) == expected


def test_trees_that_are_none_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder '.*/train', expected .*/train/<class>"):
        LabelledImages(folder / "train", training=True)
    with pytest.raises(ValueError, match=r"ant: expected .*ant/<class>/\*.jpg: Couldn't find any class folder"):
        LabelledImages(folder / "ant", training=True)
    (folder / "cow").mkdir()
    with pytest.raises(ValueError, match=r"no valid file for the classes cow"):
        LabelledImages(folder, training=True)
    (folder / "cow/moo.jpg").write_text("no image")
    dataset = LabelledImages(folder, training=True)
    with pytest.raises(ValueError, match=r"moo\.jpg: not a readable image"):
        dataset[len(dataset) - 1]
    with pytest.raises(ValueError, match="images of 0 pixels"):
        LabelledImages(folder, training=True, size=0)
