"""From a configuration to a training run: each number arrives where it belongs."""

import pytest
import torch

from norton_det.builders.detector import build_detector
from norton_det.builders.training import build_training, images_per_pass
from norton_det.config import load_config
from norton_det.data.catalog import Categories, DatasetFiles, read_categories
from norton_det.data.shapes import write_shapes

WORDS = [
    *("model.plan=none", "model.backbone_weights=none", "model.width=0.125", "model.fpn_channels=16"),
    *("model.box_channels=32", "data.augmentation=flip"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets") / "shapes"
    write_shapes(root, train_images=9, val_images=1)
    return DatasetFiles("shapes", root / "train", root / "annotations/instances_train.json", keeps_ids=False)


def training(files, *words):
    config = load_config("quickstart.yaml", [*WORDS, *words])
    categories = read_categories(files, "bbox")
    built = build_detector(config, categories, None)
    return built.model, *build_training(config, built, files, categories, torch.device("cpu"))


def rates(run):
    found = []
    for _ in range(run.iterations):
        found.append(run.schedule.get_last_lr()[0])
        run.optimizer.step()
        run.schedule.step()
    return found


def test_rate_milestones_and_warm_up_are_scaled_to_the_run(files):
    """An epoch is as many whole steps as fit into the images that hold an object, at least one."""
    words = ["train.batch_size=4", "train.lr=0.4", "train.optimizer=sgd", "train.schedule=multistep"]
    words += ["train.epochs=10", "train.milestones=[5, 8]"]
    _, whole, dataset = training(files, *words, "train.warmup_iterations=0")
    steps = len(dataset) // 4
    assert rates(whole) == pytest.approx([0.1] * 5 * steps + [0.01] * 3 * steps + [0.001] * 2 * steps)
    _, half, _ = training(files, *words, f"train.warmup_iterations={4 * steps}", f"train.max_iterations={5 * steps}")
    found = rates(half)  # half as long: a warm-up of 2 epochs, milestones after 2.5 and 4
    assert len(found) == 5 * steps
    assert found[: 2 * steps] == pytest.approx([0.1 * (0.001 + 0.999 * i / (2 * steps)) for i in range(2 * steps)])
    assert found[2 * steps] == pytest.approx(0.1) and found[-1] == pytest.approx(0.001)


def test_a_run_has_what_the_configuration_says(files):
    words = ["train.batch_size=6", "train.accumulation=3", "train.clip_norm=0.5", "train.ema=0.75", "seed=7"]
    words += ["train.checkpoint_period=11", "train.log_period=12", "train.distill_weight=2.5", "output_dir=there"]
    model, run, dataset = training(files, *words, "model.norm=frozen", "model.trainable_stages=2")
    assert (run.images_per_step, run.accumulation, run.clip_norm, run.seed) == (6, 3, 0.5, 7)
    assert (run.checkpoint_period, run.log_period, run.average.decay) == (11, 12, 0.75)
    assert run.losses.keywords["distill_weight"] == 2.5
    assert str(run.checkpoints.folder) == "there/checkpoints"
    assert images_per_pass(load_config("quickstart.yaml", words)) == 2
    trained = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad and ".body." in name}
    assert trained == {"layer3", "layer4"}
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    _, _, other = training(files, "seed=8")
    flipped = [[not torch.equal(one[i, 0][0], dataset[0, 0][0]) for i in range(8)] for one in (dataset, other)]
    assert flipped[0] != flipped[1]


def test_a_detector_has_the_configured_settings():
    words = ["model.min_size=[64, 96]", "model.max_size=160", "model.anchor_sizes=[8, 16, 24, 48, 96]"]
    words += ["model.rpn_rois=11", "model.box_rois=12", "model.train_proposals=13", "model.test_proposals=14"]
    words += ["test.score_threshold=0.15", "test.detections=16"]
    categories = Categories(("__background__", "a"), (0, 1))
    model = build_detector(load_config("quickstart.yaml", [*WORDS, *words]), categories, None).model
    rpn, heads = model.rpn, model.roi_heads
    assert (tuple(model.transform.min_size), model.transform.max_size) == ((64, 96), 160)
    assert rpn.anchor_generator.sizes == ((8,), (16,), (24,), (48,), (96,))
    assert (rpn.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.batch_size_per_image) == (11, 12)
    assert rpn._post_nms_top_n == {"training": 13, "testing": 14}
    assert (heads.score_thresh, heads.detections_per_img) == (0.15, 16)
