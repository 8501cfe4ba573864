"""Pictures of what training takes in."""

from itertools import islice

import pytest
import torch

from norton_det.builders.datasets import build_training_dataset
from norton_det.builders.resolve import resolve_dataset
from norton_det.builders.training import build_batches
from norton_det.cli.main import main
from norton_det.config import load_config
from norton_det.data.catalog import read_categories
from norton_det.data.images import read_image

pytestmark = pytest.mark.usefixtures("drawn_datasets")


def draw(config, output, *words):
    words = ["--config", config, "--count", "3", "--output", output, "data.train=shapes_train", *words]
    return main(["visualize-data", *words, "train.batch_size=2"])


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn", "keypoint_rcnn"])
def test_pictures_are_those_of_the_seed(detector, tmp_path):
    config = f"{detector}_norton.yaml"
    assert draw(config, "first") == draw(config, "again") == draw(config, "other", "seed=1") == 0
    first, again, other = (sorted((tmp_path / name).iterdir()) for name in ("first", "again", "other"))
    assert len(first) == 3
    assert [path.name for path in first] == [path.name for path in again] != [path.name for path in other]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_pictures_are_numbered_and_of_the_first_steps(tmp_path):
    assert draw("faster_rcnn_norton.yaml", "pictures") == 0
    config = load_config(
        "faster_rcnn_norton.yaml", ["data.train=shapes_train", "train.batch_size=2", "data.workers=0"]
    )
    files = resolve_dataset(config, "train")
    batches = build_batches(config, build_training_dataset(config, files, read_categories(files, "bbox")), start=0)
    first = [int(target["image_id"]) for _, targets in islice(batches, 2) for target in targets][:3]
    expected = [f"{number:04}_image_{image_id}.png" for number, image_id in enumerate(first, start=1)]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == expected


def test_pictures_show_the_augmentation_and_the_objects(tmp_path, datasets):
    assert draw("mask_rcnn_norton.yaml", "plain", "data.augmentation=none") == 0
    for path in (tmp_path / "plain").iterdir():
        image_id = int(path.stem.split("_")[-1])
        original = read_image(datasets / f"shapes/train/{image_id:012}.jpg")
        changed = (read_image(path) != original).any(dim=0)
        assert 0.001 < changed.float().mean() < 0.9
    assert draw("mask_rcnn_norton.yaml", "jittered", "data.augmentation=lsj") == 0
    assert {read_image(path).shape for path in (tmp_path / "jittered").iterdir()} == {torch.Size([3, 1024, 1024])}


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--count", "0"], "--count: at least 1, got 0"), (["data.train=shape_train"], "shapes_train")],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, expected, capsys, tmp_path):
    assert main(["visualize-data", "--config", "quickstart.yaml", "--output", "pictures", *words]) == 2
    message = capsys.readouterr().err.strip()
    assert expected in message and "\n" not in message
    assert list(tmp_path.iterdir()) == []
