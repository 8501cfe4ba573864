"""Every YAML in configs/ is loaded, and what it describes fits together; nothing is built of real numbers."""

import pytest
from detectors import kind_name

from norton_det.builders.resolve import configure, resolve_plan, resolve_structure
from norton_det.compression.compress import apply_structure
from norton_det.config import Config, ModelConfig, configs_folder, load_config
from norton_det.models.parts import PARTS, part_layers
from norton_det.models.persistence import describe
from norton_det.models.recognise import structure_of
from norton_det.models.slicing import scale_body
from norton_det.models.structure import BODIES, KINDS, template

FILES = sorted(path for path in configs_folder().rglob("*.yaml"))
RUNNABLE = [path for path in FILES if path.parent.name != "base"]


def test_there_are_configs_for_every_detector():
    names = {path.name for path in FILES}
    forms = ("dense", "norton", "norton_all")
    whole = ("faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet", "fcos")
    assert {f"{kind}_{form}.yaml" for kind in whole for form in forms} <= names
    assert {f"{kind}_v2_{form}.yaml" for kind in ("faster_rcnn", "mask_rcnn") for form in forms[:2]} <= names
    bodies = {load_config(path).model.body for path in RUNNABLE}
    assert {"resnet18", "resnet50", "resnet101"} <= bodies


def test_a_configuration_takes_every_kind_and_body_that_there_is():
    for kind in KINDS:
        assert Config(model=ModelConfig(detector=kind)).model.detector == kind
    for body in BODIES:
        assert Config(model=ModelConfig(body=body)).model.body == body


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_config_loads_and_its_plan_fits_its_detector(path):
    config = load_config(path)
    classes = 2 if config.model.detector == "keypoint_rcnn" else 91
    detector = scale_body(template(resolve_structure(config, classes)), config.model.width)
    configure(detector, config)
    layers = {part: part_layers(detector, part) for part in PARTS}
    plan = resolve_plan(config)
    if plan:
        apply_structure(detector, plan)
    factorised = {name.rpartition(".")[0] for name, _ in detector.named_parameters() if name.endswith(".channel")}
    body = {name for name in factorised if name.startswith("backbone.body.")}
    assert bool(body) == (config.model.plan != "none")
    convs = {name for part, names in layers.items() for name in names if part != "box_head"}
    assert factorised - body == (convs if path.stem.endswith("_all") else set())
    assert kind_name(structure_of(detector)) == config.model.detector
    describe(detector)


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
