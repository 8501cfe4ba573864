"""From a configuration to a detector and a training run: each number arrives where it belongs."""

import pytest
import torch
from detectors import ALL_KINDS, SIZES, kind_name, tiny_classifier, tiny_detector

import norton_det
from norton_det.builders.datasets import build_training_dataset
from norton_det.builders.detector import build_detector
from norton_det.builders.resolve import configure, resolve_task, starting_weights
from norton_det.builders.training import build_training, images_per_pass
from norton_det.config import Config, load_config
from norton_det.data.catalog import Categories, DatasetFiles, read_categories
from norton_det.data.shapes import write_shapes
from norton_det.models.categories import class_count
from norton_det.models.persistence import origin_of, save_weights
from norton_det.models.recognise import structure_of
from norton_det.models.settings import read_settings, write_settings
from norton_det.models.structure import BODIES

SMALL = {"width": 0.125, **{f"{name.replace('channels', 'fpn')}_channels": size for name, size in SIZES.items()}}
PLANS = {"resnet18": "[0.]*2+[0.25]*2+[0.5]*8", "resnet50": "norton-59"}
WORDS = [
    *("model.plan=none", "model.backbone_weights=none", "model.width=0.125", "model.fpn_channels=16"),
    *("model.box_channels=32", "data.augmentation=flip"),
]
NAMED = Categories(("__background__", "a", "b"), (0, 4, 9))


def configuration(kind="faster_rcnn", *, test=None, **model):
    values = {"device": "cpu", "model": {"detector": kind, **SMALL, **model}, "test": test or {}}
    return Config.model_validate(values)


def built(kind="faster_rcnn", **model):
    config = configuration(kind, **model)
    return build_detector(config, NAMED, starting_weights(config)).model


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def body_of(network):
    """A classifier's tensors that a detector on it has too."""
    return {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}


@pytest.mark.parametrize(
    ("kind", "body"),
    [*((kind, "resnet50") for kind in ALL_KINDS), ("mask_rcnn_v2", "resnet18"), ("retinanet", "resnet101"),
     ("fcos", "resnet34"), ("keypoint_rcnn", "wide_resnet50_2")],
)  # fmt: skip
def test_every_kind_on_every_body_is_built_from_random_weights(kind, body):
    detector = built(kind, body=body)
    structure = structure_of(detector)
    assert kind_name(structure) == kind
    assert (structure.body.block, structure.body.blocks) == (BODIES[body].block, BODIES[body].blocks)
    assert detector.backbone.body.conv1.out_channels == 8 and detector.backbone.out_channels == SIZES["channels"]
    assert (class_count(detector), detector.categories, detector.category_ids) == (
        3,
        ["__background__", "a", "b"],
        [0, 4, 9],
    )
    assert all(value.isfinite().all() for value in detector.state_dict().values())


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("body", PLANS)
def test_a_body_has_the_bits_of_the_classifiers_file(kind, body, tmp_path):
    """The file is torchvision's: tensors, and no word of what they are."""
    network = tiny_classifier(body, classes=1000)
    torch.save(network.state_dict(), tmp_path / "imagenet.pth")
    detector = built(kind, backbone_weights=str(tmp_path / "imagenet.pth"))
    assert_same_bits(detector.backbone.body.state_dict(), body_of(network))
    assert kind_name(structure_of(detector)) == kind and origin_of(detector).plan is None


@pytest.mark.parametrize(("kind", "body"), [("faster_rcnn", "resnet50"), ("fcos", "resnet18")])
def test_a_body_is_compressed_at_the_start_or_in_its_file_to_the_same_bits(kind, body, tmp_path):
    network = tiny_classifier(body)
    compressed, _ = norton_det.compress(network, PLANS[body])
    save_weights(tmp_path / "dense.pth", network)
    save_weights(tmp_path / "small.pth", compressed)
    for name in ("dense.pth", "small.pth"):
        detector = built(kind, backbone_weights=str(tmp_path / name), plan=PLANS[body])
        assert_same_bits(detector.backbone.body.state_dict(), body_of(compressed))
        assert origin_of(detector).plan == origin_of(compressed).plan
        assert origin_of(detector).kept == origin_of(compressed).kept


def test_a_real_half_width_body_with_an_ordinary_stem_is_dense_and_is_taken_whole(real_data):
    path = real_data / "weights" / "resnet50_half_width_real.pth"
    network = norton_det.load_resnet(path)
    detector = built("retinanet", backbone_weights=str(path))
    assert_same_bits(detector.backbone.body.state_dict(), body_of(network))
    assert (
        detector.backbone.body.conv1.out_channels == 64 and detector.backbone.body.layer1[0].conv2.out_channels == 32
    )
    plan = {"ranks": {"layer1.0.conv2": 1}, "rates": {"layer1.0.conv2": 0.25}}
    compressed = built("retinanet", backbone_weights=str(path), plan=plan).backbone.body
    assert (compressed.layer1[0].conv2.rank, compressed.layer1[0].conv2.out_channels) == (1, 24)


@pytest.mark.parametrize(("kind", "body"), [*((kind, "resnet18") for kind in ALL_KINDS), ("fcos", "resnext50_32x4d")])
def test_a_detectors_file_is_taken_to_the_bit_with_the_body_that_it_has(kind, body, tmp_path):
    trained = tiny_detector(kind, body)
    trained.categories, trained.category_ids = list(NAMED.names), list(NAMED.ids)
    save_weights(tmp_path / "trained.pth", trained)
    detector = built(kind, weights=str(tmp_path / "trained.pth"))
    assert_same_bits(detector.state_dict(), trained.state_dict())
    assert read_settings(detector) == read_settings(trained)


def test_a_detectors_file_of_another_kind_is_one_line(tmp_path):
    save_weights(tmp_path / "trained.pth", tiny_detector("fcos", "resnet18"))
    with pytest.raises(
        ValueError, match=r"^model\.weights: .*trained\.pth is a fcos, but model\.detector is retinanet$"
    ):
        built("retinanet", weights=str(tmp_path / "trained.pth"))


NAMED_SETTINGS = {
    "min_size": ([64, 96], {"min_size": [64, 96]}),
    "max_size": (160, {"max_size": 160}),
    "rpn_rois": (11, {"rpn_batch_size_per_image": 11}),
    "box_rois": (12, {"box_batch_size_per_image": 12}),
    "train_proposals": (13, {"rpn_pre_nms_top_n_train": 13, "rpn_post_nms_top_n_train": 13}),
    "test_proposals": (14, {"rpn_pre_nms_top_n_test": 14, "rpn_post_nms_top_n_test": 14, "topk_candidates": 14}),
    "score_threshold": (0.15, {"box_score_thresh": 0.15, "score_thresh": 0.15}),
    "detections": (16, {"box_detections_per_img": 16, "detections_per_img": 16}),
}
"""By the configuration's key: a value, and torchvision's arguments that it stands for, of which a kind has some."""


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet", "fcos"])
@pytest.mark.parametrize("key", NAMED_SETTINGS)
def test_a_configuration_changes_the_settings_that_it_names_and_no_other(kind, key):
    value, meant = NAMED_SETTINGS[key]
    detector = tiny_detector(kind, "resnet18")
    before = read_settings(detector)
    is_of_test = key in ("score_threshold", "detections")
    configure(detector, configuration(kind, **{"test": {key: value}} if is_of_test else {key: value}))
    assert read_settings(detector) == before | {name: new for name, new in meant.items() if name in before}


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("faster_rcnn", [[8], [16], [24], [48], [96]]), ("fcos", [[8], [16], [24], [48], [96]]),
     ("retinanet", [[8, 10, 12.5], [16, 20, 25.25], [24, 30.1875, 38.0625], [48, 60.375, 76.125],
                    [96, 120.9375, 152.25]])],
)  # fmt: skip
def test_a_levels_other_anchors_keep_their_proportion_to_the_configured_one(kind, sizes):
    """RetinaNet's are 32, 40, 50 pixels on the first level, 128, 161, 203 on the third, 512, 645, 812 on the last."""
    detector = tiny_detector(kind, "resnet18")
    before = read_settings(detector)
    configure(detector, configuration(kind, anchor_sizes=[8, 16, 24, 48, 96]))
    after = read_settings(detector)
    name = "rpn_anchor_generator" if kind == "faster_rcnn" else "anchor_generator"
    assert after[name] == {"sizes": sizes, "aspect_ratios": before[name]["aspect_ratios"]}
    assert {**after, name: before[name]} == before


@pytest.mark.parametrize(("kind", "boxes"), [("faster_rcnn", 2), ("retinanet", 6)])
def test_a_new_head_predicts_as_many_boxes_as_the_configured_ratios_ask_for(kind, boxes):
    detector = built(kind, aspect_ratios=[1.0, 3.0], body="resnet18")
    generator = detector.rpn.anchor_generator if kind == "faster_rcnn" else detector.anchor_generator
    assert generator.aspect_ratios == ((1.0, 3.0),) * 5 and generator.num_anchors_per_location() == [boxes] * 5
    found = detector.eval()([torch.rand(3, 64, 64)])[0]
    assert found["boxes"].shape[1] == 4


@pytest.mark.parametrize("kind", ["mask_rcnn_v2", "retinanet", "fcos"])
def test_settings_of_a_file_that_a_configuration_does_not_name_are_kept(kind, tmp_path):
    trained = tiny_detector(kind, "resnet18")
    anchors = "rpn_anchor_generator" if kind == "mask_rcnn_v2" else "anchor_generator"
    generator = read_settings(trained)[anchors]
    own = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        anchors: {**generator, "sizes": [[size + 3 for size in level] for level in generator["sizes"]]},
    }
    own |= {"rpn_nms_thresh": 0.6, "box_nms_thresh": 0.4} if kind == "mask_rcnn_v2" else {"nms_thresh": 0.4}
    write_settings(trained, own)
    trained.categories, trained.category_ids = list(NAMED.names), list(NAMED.ids)
    save_weights(tmp_path / "trained.pth", trained)
    found = read_settings(built(kind, weights=str(tmp_path / "trained.pth"), max_size=111))
    assert found == read_settings(trained) | {"max_size": 111}
    assert {name: found[name] for name in own} == own


@pytest.mark.parametrize(
    ("anchors", "told"),
    [
        ({"anchor_sizes": [8, 16, 32, 64]}, r"^model\.anchor_sizes: \[8, 16, 32, 64\], expected one for each of the"
         r" pyramid's 5 levels$"),
        ({"aspect_ratios": [1.0]}, r"^anchors of 1 boxes a place, but the head predicts 3; .*$"),
    ],
)  # fmt: skip
def test_anchors_that_do_not_fit_are_one_line(anchors, told):
    with pytest.raises(ValueError, match=told):
        configure(tiny_detector("faster_rcnn", "resnet18"), configuration(**anchors))


@pytest.mark.parametrize(
    ("kind", "task"), [("mask_rcnn_v2", "segm"), ("keypoint_rcnn", "keypoints"), ("fcos", "bbox")]
)
def test_a_kind_has_its_task(kind, task):
    assert resolve_task(configuration(kind)) == task


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets") / "shapes"
    write_shapes(root, train_images=9, val_images=1)
    return DatasetFiles("shapes", root / "train", root / "annotations/instances_train.json", keeps_ids=False)


def training(files, *words):
    config = load_config("quickstart.yaml", [*WORDS, *words])
    categories = read_categories(files, "bbox")
    built = build_detector(config, categories, None)
    dataset = build_training_dataset(config, files, categories)
    return built.model, build_training(config, built, dataset, torch.device("cpu")), dataset


def rates(run):
    return [run.schedule(done) for done in range(run.iterations)]


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
