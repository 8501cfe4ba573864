"""Training under torch's own watch over determinism."""

import pytest
import torch

from norton_det.builders.datasets import build_training_dataset
from norton_det.builders.detector import build_detector
from norton_det.builders.resolve import resolve_categories, resolve_dataset
from norton_det.builders.training import build_batches, build_training
from norton_det.config import load_config
from norton_det.data.shapes import write_shapes
from norton_det.engine.metrics import MetricsWriter
from norton_det.engine.trainer import train

TINY = [
    *("model.width=0.125", "model.min_size=96", "model.max_size=128", "model.fpn_channels=16", "device=cpu"),
    *("model.box_channels=32", "model.mask_channels=8", "model.keypoint_channels=8", "data.workers=0"),
    *("model.train_proposals=50", "train.batch_size=2", "train.max_iterations=2", "train.warmup_iterations=0"),
    *("model.backbone_weights=none", "data.train=shapes_train", "data.test=shapes_val", "model.recover_images=0"),
]
LAST = "backbone.body.layer4.2.conv3.weight"
CONFIGS = [
    *(f"{kind}_rcnn_{plan}" for kind in ("faster", "mask", "keypoint") for plan in ("dense", "norton", "norton_all")),
    *("retinanet_dense", "retinanet_norton_all", "fcos_dense", "fcos_norton_all", "mask_rcnn_v2_norton"),
]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / "shapes", train_images=6, val_images=1)
    return root


@pytest.fixture
def only_deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def trained(config, folder):
    files = resolve_dataset(config, "train")
    categories = resolve_categories(config, files)
    built = build_detector(config, categories, None)
    dataset = build_training_dataset(config, files, categories)
    run = build_training(config, built, dataset, torch.device("cpu"))
    start = {name: value.clone() for name, value in run.model.state_dict().items()}
    with MetricsWriter(folder / "metrics.jsonl", run.iterations, 0) as metrics:
        train(run, build_batches(config, dataset, 0), metrics, 0)
    return start, run.model.state_dict()


@pytest.mark.usefixtures("only_deterministic")
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_seed_gives_the_same_bits_twice(name, datasets, tmp_path, monkeypatch):
    monkeypatch.setenv("NORTON_DATASETS", str(datasets))
    config = load_config(f"{name}.yaml", [*TINY, f"output_dir={tmp_path}"])
    start, first = trained(config, tmp_path)
    _, second = trained(config, tmp_path)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first[LAST], start[LAST])
    other, _ = trained(config.model_copy(update={"seed": 1}), tmp_path)
    assert not torch.equal(other[LAST], start[LAST])
