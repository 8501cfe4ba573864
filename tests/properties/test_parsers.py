"""What comes from outside, plans, configurations and COCO's JSON, is read or refused in one clear line."""

import json
import math
import random
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from norton_det.compression.plan import CompressionPlan, load_plan, parse_notation
from norton_det.config import load_config, save_config
from norton_det.data.annotations import load_annotations
from norton_det.data.catalog import DatasetFiles, read_categories
from norton_det.models.channels import read_body
from norton_det.models.parts import PARTS
from norton_det.models.structure import named_structure, template

BODY = read_body(template(named_structure(None, "resnet50", 1)))
RATES = st.floats(0, 1, exclude_max=True)
PLANS = st.builds(
    CompressionPlan,
    st.dictionaries(st.sampled_from(BODY.spatial), st.integers(1, 9)),
    st.dictionaries(st.sampled_from(list(BODY.groups)), RATES),
    st.dictionaries(st.sampled_from(list(PARTS)), st.integers(1, 300)),
)


def junk(seed):
    """Any value that JSON may hold, from a seed: drawn part by part it takes many times longer."""
    return _junk(random.Random(seed), depth=0)


def _junk(draw, depth):
    kind = draw.randrange(9 if depth < 3 else 7)
    if kind < 2:
        return draw.choice([None, True, False, 0, -1, 1, "", math.nan, -math.inf, 1e308, -0.0, 10**400, "\ud800"])
    if kind < 4:
        return draw.randint(-50, 50) if draw.random() < 0.7 else draw.getrandbits(80) - 2**79
    if kind == 4:
        return draw.uniform(-50, 50)
    if kind < 7:
        return _text(draw)
    children = [_junk(draw, depth + 1) for _ in range(draw.randrange(5))]
    return children if kind == 7 else {_text(draw): child for child in children}


def _text(draw):
    letters = string.printable if draw.random() < 0.7 else "\0\x85\u2028é漢\U0001f600\udfff"
    return "".join(draw.choices(letters, k=draw.randrange(8)))


SEEDS = st.integers(0, 2**64)
JSON = SEEDS.map(junk)
NOTATION = st.text("[]+*,.0123456789e- ", max_size=60)
PLAN_WORDS = st.sampled_from(["ranks", "rates", "parts", "notation", "rank", "stem", "layer1", "layer1.0.conv2"])
PLAN_LIKE = st.dictionaries(PLAN_WORDS | st.integers(), st.dictionaries(PLAN_WORDS | st.integers(), JSON) | JSON)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parsers")


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


@given(PLANS)
def test_a_plan_that_is_written_is_read_back(plan):
    assert CompressionPlan.from_dict(json.loads(json.dumps(plan.to_dict())), BODY) == plan


@given(st.lists(st.tuples(st.lists(RATES, min_size=1, max_size=3), st.integers(1, 5)), min_size=1, max_size=6))
def test_notation_that_is_printed_is_parsed(terms):
    text = "+".join(f"{numbers}*{count}" if count > 1 else f"{numbers}" for numbers, count in terms)
    assert parse_notation(text) == [number for numbers, count in terms for number in numbers * count]


@given(NOTATION | st.text())
def test_any_text_is_a_plan_or_refused(text):
    try:
        plan = load_plan(text, BODY)
    except ValueError as error:
        assert str(error)
    else:
        assert all(0 <= rate < 1 for rate in plan.rates.values())


@given(PLAN_LIKE)
def test_any_mapping_is_a_plan_or_refused(content):
    try:
        plan = load_plan(content, BODY)
    except ValueError:
        return
    assert CompressionPlan.from_dict(plan.to_dict(), BODY) == plan


@given(JSON.map(json.dumps).map(str.encode) | st.binary())
def test_any_file_is_a_plan_or_refused(folder, content):
    path = write(folder, "plan.json", content)
    try:
        load_plan(path, BODY)
    except ValueError as error:
        assert "plan" in str(error)


KEYS = st.sampled_from(
    ["model", "train", "data", "test", "base", "seed", "device", "output_dir", "model.plan", "train.lr", "data.train"]
)
CONFIG_LIKE = st.dictionaries(
    KEYS | st.text() | st.integers(),
    JSON
    | st.dictionaries(
        st.sampled_from(["plan", "lr", "train", "min_size", "ema"]) | st.text() | st.integers(), JSON, max_size=3
    ),
    max_size=3,
)


@given(CONFIG_LIKE.map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode()) | st.binary() | JSON.map(
    lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_file_is_a_configuration_or_refused(folder, content):
    path = write(folder, "config.yaml", content)
    try:
        load_config(path)
    except ValueError as error:
        assert "config.yaml" in str(error)


@given(st.lists(st.builds("{}={}".format, KEYS | st.text(), JSON.map(json.dumps) | st.text()), max_size=3))
def test_any_override_is_taken_or_refused(overrides):
    try:
        load_config("quickstart.yaml", overrides)
    except ValueError as error:
        assert str(error)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(0, 2**40),
            "output_dir": st.text(min_size=1),
            "model": st.fixed_dictionaries(
                {},
                optional={
                    "width": st.floats(0, 1, exclude_min=True),
                    "min_size": st.lists(st.integers(1, 5000), min_size=1),
                    "norm": st.sampled_from(["batch", "frozen", "sync"]),
                    "plan": st.text() | PLANS.map(CompressionPlan.to_dict),
                },
            ),
            "train": st.fixed_dictionaries(
                {}, optional={"lr": st.floats(1e-300, 1e300), "ema": st.just("none") | st.floats(0.01, 0.99)}
            ),
        },
    )
)
def test_a_configuration_that_is_written_is_read_back(folder, values):
    first = load_config(write(folder, "config.yaml", yaml.safe_dump(values, allow_unicode=True).encode()))
    save_config(first, folder / "again.yaml")
    assert load_config(folder / "again.yaml") == first


NUMBER = st.integers(-5, 40) | st.floats(-50, 50) | st.floats() | st.integers() | st.just(10**400)
POLYGON = st.lists(NUMBER, max_size=10)
POINTS = SEEDS.map(lambda seed: random.Random(seed).choices(range(41), k=51))
RLE = st.fixed_dictionaries(
    {"counts": st.text(max_size=12) | st.lists(NUMBER, max_size=6), "size": st.just([30, 40]) | st.lists(NUMBER)}
)
IDS = st.integers(0, 3) | NUMBER | JSON
NAMES = st.sampled_from(["a.jpg", "b/c.jpg", "../x.jpg", "/etc/passwd", "\x00.jpg", "\ud800.jpg"]) | st.text()
IMAGE = st.fixed_dictionaries(
    {"id": IDS, "width": st.just(40) | JSON, "height": st.just(30) | JSON, "file_name": NAMES | JSON}
)
ANNOTATION = st.fixed_dictionaries(
    {"id": IDS, "image_id": IDS, "category_id": IDS, "bbox": st.lists(NUMBER, min_size=4, max_size=4) | JSON},
    optional={
        "segmentation": st.lists(POLYGON, max_size=2) | RLE | JSON,
        "keypoints": POINTS | JSON,
        "iscrowd": st.integers(0, 1) | JSON,
        "area": NUMBER | JSON,
    },
)
CATEGORY = st.fixed_dictionaries(
    {"id": IDS, "name": st.text() | JSON}, optional={"keypoints": st.just(["point"] * 17) | JSON}
)
COCO = st.fixed_dictionaries(
    {
        "images": st.lists(IMAGE | JSON, min_size=1, max_size=3) | JSON,
        "annotations": st.lists(ANNOTATION | JSON, max_size=3) | JSON,
        "categories": st.lists(CATEGORY | JSON, min_size=1, max_size=3) | JSON,
    }
)


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
@given(content=(COCO | JSON).map(lambda value: json.dumps(value).encode()) | st.binary(), training=st.booleans())
def test_any_file_is_a_dataset_or_refused(task, folder, content, training):
    path = write(folder, "annotations.json", content)
    files = DatasetFiles("any", folder, path, keeps_ids=False)
    try:
        categories = read_categories(files, task)
        found = load_annotations(files, categories, task, training, keep_empty=False)
    except ValueError as error:
        assert "annotations.json" in str(error)
        return
    for name in found.file_names:
        image = (Path("images") / name.decode()).resolve()
        assert Path("images").resolve() in image.parents
    if found.objects:
        assert (found.objects.boxes >= 0).all()
        assert (found.objects.boxes[:, 2:] - found.objects.boxes[:, :2] > 0.9).all()
        assert set(found.objects.labels) <= set(range(1, len(categories.names)))


def scenes():
    """Valid content, and of each annotation what must come out: image, label, clipped box."""
    box = st.tuples(st.integers(0, 20), st.integers(0, 15), st.integers(2, 40), st.integers(2, 40))
    return st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), box), min_size=1, max_size=8)


@given(scenes())
def test_a_valid_dataset_gives_its_boxes(folder, objects):
    annotations = [
        {"id": i, "image_id": 7 * image, "category_id": (30, 11)[category], "bbox": list(box)}
        for i, (image, category, box) in enumerate(objects)
    ]
    content = {
        "images": [{"id": 7 * i, "width": 40, "height": 30, "file_name": f"{i}.jpg"} for i in (2, 0, 1)],
        "categories": [{"id": 30, "name": "cat"}, {"id": 11, "name": "ant"}],
        "annotations": annotations,
    }
    path = write(folder, "valid.json", json.dumps(content).encode())
    files = DatasetFiles("any", folder, path, keeps_ids=False)
    categories = read_categories(files, "bbox")
    assert categories.names[1:] == ("ant", "cat")
    found = load_annotations(files, categories, "bbox", training=True, keep_empty=False)
    expected = sorted(
        (7 * image, {0: 2, 1: 1}[category], (x, y, min(x + w, 40), min(y + h, 30)))
        for image, category, (x, y, w, h) in objects
    )
    counts = found.objects.offsets[1:] - found.objects.offsets[:-1]
    of_image = found.ids.repeat(counts)
    got = sorted(
        (int(id), int(label), tuple(map(int, box)))
        for id, label, box in zip(of_image, found.objects.labels, found.objects.boxes, strict=True)
    )
    assert got == expected
