"""What of a configuration may change when a run is resumed."""

import pytest

from norton_det.builders.resuming import RULES, read_contents, resumed_contents
from norton_det.config import _all_keys, load_config
from norton_det.data.catalog import DatasetFiles


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)


def configured(*words):
    return load_config("quickstart.yaml", words)


def resumed(old, new, before=None, now=None):
    checkpoint = {"config": configured(*old).model_dump(mode="json"), "contents": before or {}}
    return resumed_contents(configured(*new), now or {}, checkpoint)


def test_rules_are_of_keys_that_there_are():
    assert set(RULES) <= set(_all_keys())


@pytest.mark.parametrize(
    ("key", "value", "was"),
    [
        ("train.lr", 0.5, 0.0014),
        ("train.epochs", 9.0, 4.2),
        ("train.schedule", "multistep", "cosine"),
        ("test.detections", 7, None),
    ],
)
def test_what_may_change_is_told_with_both_values(key, value, was, caplog):
    resumed([], [f"{key}={value}"])
    assert caplog.messages == [f"--resume: {key} is {value!r} from here on, it was {was!r}"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ([], ["train.batch_size=4"], "train.batch_size was 8 when the run began, got 4"),
        ([], ["seed=1", "model.norm=frozen"], "seed was 0 when the run began, got 1; model.norm was 'batch'"),
        (["test.detections=7"], [], "test.detections was 7 when the run began, got None"),
        (
            ["model.weights=a.pth"],
            ["model.weights=b.pth"],
            "model.weights was 'a.pth' when",
        ),
    ],
)
def test_what_stays_is_refused_with_both_values(old, new, told):
    with pytest.raises(ValueError, match=f"^--resume: {told}.*: give that, or begin a new run"):
        resumed(old, new)


def test_files_are_told_by_what_they_hold(tmp_path):
    annotations = tmp_path / "a.json"
    annotations.write_text("{}")
    files = DatasetFiles("own", tmp_path, annotations, keeps_ids=True)
    for name, content in (("one.pth", "1"), ("copy.pth", "1"), ("other.pth", "2")):
        (tmp_path / name).write_text(content)
    one, copy, other = (
        read_contents(configured(f"model.teacher={name}.pth"), files) for name in ("one", "copy", "other")
    )
    assert set(one) == {"model.teacher", "data.train"}
    assert resumed(["model.teacher=one.pth"], ["model.teacher=copy.pth"], one, copy) == one
    with pytest.raises(ValueError, match=r"model\.teacher was another file when the run began than"):
        resumed(["model.teacher=one.pth"], ["model.teacher=one.pth"], one, other)
    gone = {"data.train": one["data.train"]}
    assert resumed(["model.teacher=one.pth"], ["model.teacher=one.pth"], one, gone) == one
    annotations.write_text("[]")
    with pytest.raises(ValueError, match=r"data\.train was another file"):
        resumed([], [], one, read_contents(configured(), files))


def test_a_checkpoint_of_a_version_with_other_keys_is_taken():
    old = configured().model_dump(mode="json")
    del old["train"]["ema"], old["data"]["damaged_images"]
    old["train"]["gone"] = 1
    assert resumed_contents(configured(), {}, {"config": old}) == {}
