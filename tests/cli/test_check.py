"""A report on a dataset before training, and the same faults told by a run before its first step."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from norton_det.cli.main import main
from norton_det.data import reading
from norton_det.data.shapes import write_shapes

TINY = [
    *("model.width=0.125", "model.min_size=64", "model.max_size=96", "model.fpn_channels=16", "device=cpu"),
    *("model.box_channels=32", "model.train_proposals=50", "model.test_proposals=50", "train.batch_size=2"),
    *("train.max_iterations=1", "data.augmentation=none", "data.workers=0", "output_dir=run"),
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    write_shapes(root / "shapes", train_images=6, val_images=3)
    return root


@pytest.fixture(autouse=True)
def shapes(drawn, tmp_path, monkeypatch):
    """A copy of the dataset to be changed."""
    shutil.copytree(drawn, tmp_path / "datasets")
    monkeypatch.delenv("NORTON_DATASETS", raising=False)
    return tmp_path / "datasets" / "shapes"


def changed(shapes, split, change):
    """The test set as `data.test` takes it, its JSON changed in place by a function of its content."""
    path = shapes / f"annotations/instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def run(command, *words):
    return main([command, "--config", "quickstart.yaml", *TINY, *words])


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_sound_dataset_is_counted_and_begins(shapes, capsys):
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    assert run("check", "--json", "health.json") == 0
    assert capsys.readouterr().out.strip().endswith("a run would begin")
    train = json.loads(Path("health.json").read_text())["train"]
    by_id = {category["id"]: category["name"] for category in content["categories"]}
    of_ids = [annotation["category_id"] for annotation in content["annotations"]]
    assert train["objects"] == {name: of_ids.count(id) for id, name in by_id.items()}
    small = sum(annotation["area"] < 32**2 for annotation in content["annotations"])
    assert train["sizes"]["small"] == small and sum(train["sizes"].values()) == len(of_ids)
    assert not train["problems"] and not Path("run").exists()


def test_every_problem_is_listed_and_a_run_names_the_first_before_it_begins(shapes, capsys):
    def spoil(content):
        content["annotations"][0]["bbox"] = [1, 2, None, 4]
        content["annotations"][1]["iscrowd"] = "no"

    changed(shapes, "val", spoil)
    assert run("check", "--json", "health.json") == 2
    assert last_line(capsys) == "norton-det check: a run would be refused for 2 problems, see above"
    told = json.loads(Path("health.json").read_text())["test"]["problems"]
    assert ["annotation 1: bbox" in told[0], "annotation 2: iscrowd" in told[1]] == [True, True]
    assert run("train") == 2
    assert last_line(capsys).endswith(f"{told[0]} (and 1 more like it: norton-det check lists them)")
    assert not Path("run").exists()


def test_images_are_looked_at_beside_a_jsons_problems(shapes, capsys):
    def spoil(content):
        content["annotations"][0]["iscrowd"] = "no"
        (shapes / "val" / content["images"][0]["file_name"]).unlink()

    changed(shapes, "val", spoil)
    assert run("check", "--json", "health.json") == 2
    health = json.loads(Path("health.json").read_text())["test"]
    assert health["images"] == 3 and len(health["problems"]) == 2
    assert "annotation 1: iscrowd" in health["problems"][0] and "no image file" in health["problems"][1]


def test_each_file_is_read_once(shapes, monkeypatch, capsys):
    decoded, opened = [], []
    read, look = reading.read_annotations, Image.open
    monkeypatch.setattr(reading, "read_annotations", lambda path: decoded.append(path) or read(path))
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or look(path))
    assert run("check", "data.keep_empty=true") == 0
    assert [path.name for path in decoded] == ["instances_train.json", "instances_val.json"]
    assert len(opened) == len(set(opened)) == 6 + 3


@pytest.mark.parametrize("split", ["train", "val"])
def test_what_stands_twice_is_told_by_a_check_and_by_a_run(split, shapes, caplog, capsys):
    def double(content):
        for annotation in content["annotations"][:3]:
            annotation["id"] = 7
        first = content["images"][0]
        content["images"].append({**first, "id": 999})

    changed(shapes, split, double)
    content = json.loads((shapes / f"annotations/instances_{split}.json").read_text())
    assert [annotation["id"] for annotation in content["annotations"]].count(7) > 2
    told = [
        "ids that several annotations share: 1, such as 7; each annotation counts as an object",
        f"files that several image ids name: 1, such as {content['images'][0]['file_name']}; each id shows its own",
    ]
    assert run("check") == 0
    out = capsys.readouterr().out
    assert [out.count(line) for line in told] == [1, 1]
    assert run("train", "data.keep_empty=true") == 0
    assert [sum(line in message for message in caplog.messages) for line in told] == [1, 1]


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_that_are_missing_damaged_or_turned_are_told_before_training(split, shapes, capsys):
    content = json.loads((shapes / f"annotations/instances_{split}.json").read_text())
    shown = sorted({annotation["image_id"] for annotation in content["annotations"]})
    first, second, third = (shapes / split / f"{id:012}.jpg" for id in shown[:3])
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    picture, exif = Image.open(third), Image.Exif()
    exif[0x0112] = 3
    picture.rotate(180).save(third, exif=exif)
    assert run("check", "--json", "health.json") == 2
    health = json.loads(Path("health.json").read_text())["test" if split == "val" else "train"]
    assert len(health["problems"]) == 2
    assert "no image file" in health["problems"][0] and str(second.name) in health["problems"][1]
    assert any("images that are turned upright" in note for note in health["notes"])
    capsys.readouterr()
    assert run("train") == 2
    assert "no image file" in last_line(capsys) and not Path("run/model_final.pth").exists()


def test_categories_are_matched_by_name_and_what_differs_is_told(shapes, caplog, capsys):
    assert run("train") == 0
    plain = json.loads(Path("run/evaluation/metrics.json").read_text())
    ids = {1: 70, 3: 1, 4: 3, 8: 4, 11: 8, 15: 11}

    def renumber(content):
        for category in content["categories"]:
            category["id"] = ids[category["id"]]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"]]

    changed(shapes, "val", renumber)
    words = ["model.weights=run/model_final.pth", "model.plan=none"]
    assert run("train", "--eval-only", *words, "output_dir=again") == 0
    assert json.loads(Path("again/evaluation/metrics.json").read_text()) == plain
    assert any("numbers categories otherwise" in message for message in caplog.messages)

    changed(shapes, "val", lambda content: content["categories"].append({"id": 99, "name": "whale"}))
    assert run("check") == 0
    assert "note: categories differ: the detector lacks whale" in capsys.readouterr().out

    def rename(content):
        for category in content["categories"]:
            category["name"] = f"other {category['name']}"

    changed(shapes, "val", rename)
    assert run("train", "output_dir=none") == 2
    assert "categories differ: the detector lacks other car" in last_line(capsys) and not Path("none").exists()


def test_classes_that_nobody_named_are_the_datas_where_they_are_as_many(shapes, caplog, capsys):
    assert run("train") == 0
    content = torch.load("run/model_final.pth", weights_only=True)
    known = {name: value for name, value in content.items() if name not in ("categories", "category_ids")}
    torch.save(known, "unnamed.pth")
    words = ["model.weights=unnamed.pth", "model.plan=none"]
    assert run("train", "--eval-only", *words, "output_dir=again") == 0
    told = "unnamed.pth does not name its classes: they are taken to be the data's, in this order: 1 person"
    assert told in caplog.text
    plain, again = (json.loads(Path(f"{name}/evaluation/metrics.json").read_text()) for name in ("run", "again"))
    assert plain == again
    assert run("train", *words, "train.lr=1e-12", "output_dir=tuned") == 0
    scores = "roi_heads.box_predictor.cls_score.weight"
    tuned = torch.load("tuned/model_final.pth", weights_only=True)
    torch.testing.assert_close(tuned["model"][scores], content["model"][scores])
    assert tuned["categories"] == content["categories"]


def test_images_that_are_trained_on_too_and_boxes_that_leave_their_image_are_noted(shapes, capsys):
    def corners(content):
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            annotation["bbox"] = [x, y, x + width, y + height]

    changed(shapes, "train", corners)
    assert run("check", "data.test=shapes_train", "--headers") == 0
    out = capsys.readouterr().out
    assert "boxes that reach more than a pixel out of their image: " in out
    assert "test images that are trained on too: " in out


def test_images_that_show_nothing_are_trained_on_where_that_is_wanted(shapes, caplog, capsys):
    changed(shapes, "train", lambda content: content.update(annotations=[]))
    assert run("train") == 2
    assert "data.keep_empty=true trains on images without objects" in last_line(capsys)
    assert run("train", "data.keep_empty=true", "model.detector=mask_rcnn", "model.mask_channels=16") == 0
    assert any(
        message.startswith("shapes_train: 6 images, 6 of them without objects; left out: nothing")
        for message in caplog.messages
    )
