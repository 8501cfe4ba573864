"""Every YAML in configs/ is loaded and built."""

import pytest

from norton_det.builders.detector import build_detector
from norton_det.config import configs_folder, load_config
from norton_det.data.catalog import Categories

FILES = sorted(path for path in configs_folder().rglob("*.yaml"))
CATEGORIES = Categories(("__background__", "person"), (0, 1))
RUNNABLE = [path for path in FILES if path.parent.name != "base"]


def test_there_are_configs_for_every_detector():
    names = {path.name for path in FILES}
    forms = ("dense", "norton", "norton_all")
    assert {f"{kind}_rcnn_{form}.yaml" for kind in ("faster", "mask", "keypoint") for form in forms} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_config_loads_and_builds(path):
    config = load_config(path, ["model.backbone_weights=none"])
    built = build_detector(config, CATEGORIES, None)
    compressed_layers = [name for name, _ in built.model.named_parameters() if name.endswith(".channel")]
    assert bool(compressed_layers) == (config.model.plan != "none")


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.name)
def test_config_header_tells_command_and_hardware(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"--config {path.name}" in line for line in header)
    assert any("Hardware:" in line for line in header)


@pytest.mark.parametrize("name", ["faster_rcnn_norton.yaml", "mask_rcnn_dense.yaml"])
def test_the_papers_schedule(name):
    train = load_config(name).train
    assert (train.epochs, train.milestones, train.lr, train.batch_size) == (26, [16, 22], 0.02, 16)


def test_the_papers_keypoint_schedule():
    train = load_config("keypoint_rcnn_norton.yaml").train
    assert (train.epochs, train.milestones) == (46, [36, 43])
