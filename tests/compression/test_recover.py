"""Recovery from unlabelled images: it helps, never hurts, holds little, and goes on where it was stopped."""

import copy
import weakref

import pytest
import torch
from detectors import ALL_KINDS, tiny_classifier, tiny_detector
from torch import nn
from torchvision.models.detection._utils import overwrite_eps
from torchvision.transforms import Resize

from norton_det.compression import recover as module
from norton_det.compression import recovery_run
from norton_det.compression.activations import ActivationFile
from norton_det.compression.compress import compress
from norton_det.compression.distill import Distillation, distill, output_error, settle_statistics
from norton_det.compression.plan import CompressionPlan, load_plan
from norton_det.compression.recover import compress_and_recover, recover
from norton_det.models.channels import read_body
from norton_det.models.norms import freeze_batch_norms
from norton_det.models.parts import PARTS
from norton_det.models.persistence import describe, detector_from_weights, save_weights
from norton_det.models.settings import read_settings
from norton_det.models.weights import read_weights

PLAN = {"notation": "[0.]+[0.2]*19", "parts": dict.fromkeys(PARTS, 1) | {"box_head": 8}}
HEADS = {
    "faster_rcnn": ["rpn", "box head"],
    "mask_rcnn": ["rpn", "box head", "mask head"],
    "keypoint_rcnn": ["rpn", "box head", "keypoint head"],
    "faster_rcnn_v2": ["rpn", "box head"],
    "mask_rcnn_v2": ["rpn", "box head", "mask head"],
    **{kind: ["classification head", "regression head"] for kind in ("retinanet", "retinanet_v2", "fcos")},
}
BLOCKS = [f"layer{stage}.{i}" for stage, count in enumerate((3, 4, 6, 3), start=1) for i in range(count)]


def compressed_by(plan, model):
    return compress(model, load_plan(plan, read_body(model)))


@pytest.fixture(autouse=True)
def small_crops(monkeypatch):
    monkeypatch.setattr(module, "CROP", 64)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    coarse = [torch.rand(1, 3, 8, 8 + i % 3, generator=generator) for i in range(17)]
    return [nn.functional.interpolate(image, scale_factor=9, mode="bilinear")[0] for image in coarse]


@pytest.fixture(scope="module")
def network(images):
    return as_if_trained(tiny_classifier(), images)


@torch.no_grad()
def as_if_trained(network, images):
    """With BatchNorm's statistics those of images."""
    network.train()
    for image in images:
        network(nn.functional.interpolate(image[None], (64, 64)))
    return network.eval()


def detector(kind, images, body="resnet18"):
    built = tiny_detector(kind, body)
    as_if_trained(built.backbone, images)
    return built


def notation(model):
    """PLAN in the length that the body takes, the stem and first stage alike."""
    return PLAN | {"notation": f"[0.2]*{4 + len(read_body(model).blocks)}"}


def write(path, maps):
    file = ActivationFile(path)
    for batch in maps.split(3):
        file.append(batch)
    return file


def test_a_file_gives_back_maps(tmp_path):
    maps = torch.randn(7, 5, 6, 4)
    file = write(tmp_path / "maps", maps)
    assert file.count == 7
    chosen = [6, 0, 3]
    assert torch.equal(file.read(chosen), maps[chosen])
    assert torch.equal(file.select([4, 1]).read(chosen), maps[chosen][:, [4, 1]])
    file.append(maps[:2])
    assert torch.equal(file.read([6, 7, 8]), torch.cat([maps[6:], maps[:2]]))
    file.delete()
    assert not (tmp_path / "maps").exists()


def test_every_part_is_better_or_as_it_was(network, images):
    compressed, report = compressed_by(PLAN, network)
    restored, recovery = recover(compressed, network, images, report.kept, steps=100)
    assert [part.name for part in recovery] == ["stem", *BLOCKS]
    assert all(part.after <= part.before for part in recovery)
    assert sum(part.after < part.before for part in recovery) > 10
    # measured by itself, in another way: the output of the last stage on images as the network sees them
    pixels = torch.stack([module._crop(module._normalised(network, image), 0)[0] for image in images[:4]])

    def features(model):
        x = model.maxpool(model.relu(model.bn1(model.conv1(pixels))))
        return model.layer4(model.layer3(model.layer2(model.layer1(x))))

    with torch.no_grad():
        wanted, before, after = (features(model.eval()) for model in (network, compressed, restored))
    assert (after - wanted).norm() < 0.95 * (before - wanted).norm()


def test_nothing_is_done_where_nothing_is_lost(network, images):
    compressed, report = compress(network, CompressionPlan())
    restored, recovery = recover(compressed, network, images, report.kept, steps=2)
    assert all(part.before == part.after == 0 for part in recovery)
    assert all(
        torch.equal(a, b) for a, b in zip(restored.state_dict().values(), network.state_dict().values(), strict=True)
    )


def test_models_are_left_alone_and_the_seed_decides(network, images):
    compressed, report = compressed_by(PLAN, network)
    before = [copy.deepcopy(model.state_dict()) for model in (compressed, network)]
    first, again, other = (recover(compressed, network, images, report.kept, steps=32, seed=s)[0] for s in (0, 0, 1))
    for model, state in zip((compressed, network), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    states = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert all(parameter.requires_grad for parameter in first.parameters())


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_detector_is_restored_to_its_heads(kind, images):
    dense = detector(kind, images)
    compressed, report = compressed_by(notation(dense), dense)
    restored, recovery = recover(compressed, dense, images[:9], report.kept, steps=6)
    blocks = [block.name for block in read_body(dense).blocks]
    assert [part.name for part in recovery] == ["stem", *blocks, "neck", *HEADS[kind], module.WHOLE]
    assert all(part.after <= part.before for part in recovery)
    assert sum(part.after < part.before for part in recovery) > len(recovery) / 4
    restored(images[:1])
    describe(restored)


@pytest.mark.parametrize(("kind", "plan"), [("mask_rcnn", "none"), ("mask_rcnn", None), ("retinanet", None)])
def test_a_detector_learns_smaller_images(kind, plan, images, tmp_path):
    dense = detector(kind, images)
    half = round(dense.transform.min_size[-1] / 2)
    how = {"steps": 12, "checkpoint": tmp_path / "recovery.pth"}
    restored, report = compress_and_recover(dense, plan or notation(dense), images[:9], share=0.5, **how)
    assert restored.transform.min_size == (half,)
    *parts, whole = report.recovery
    assert whole.name == module.WHOLE and whole.after < whole.before
    assert plan is None or all(part.before == 0 for part in parts)
    path = tmp_path / "small.pth"
    save_weights(path, restored)
    assert read_settings(detector_from_weights(read_weights(path))) == read_settings(restored)
    own, _ = compress_and_recover(dense, plan or notation(dense), images[:9], **how)  # the other's file is not taken
    assert own.transform.min_size == dense.transform.min_size


def test_smaller_images_that_nothing_is_learnt_from_are_refused(images):
    detector = tiny_detector("fcos", "resnet18")
    for learnt_from, steps in (((), 5), (images[:2], 0)):
        with pytest.raises(ValueError, match="smaller images have to be learnt"):
            compress_and_recover(detector, "none", learnt_from, share=0.5, steps=steps)


def test_smaller_images_are_nothing_for_a_classifier(network, images):
    with pytest.raises(ValueError, match="a classifier takes any size as it is"):
        compress_and_recover(network, PLAN, images, share=0.5)


@pytest.mark.parametrize("body", ["resnext50_32x4d", "resnet101"])
def test_classifiers_of_other_bodies_are_restored(body, images):
    dense = as_if_trained(tiny_classifier(body), images[:3])
    rates = {name: 0.3 for name, group in read_body(dense).groups.items() if not group.fixed}
    compressed, report = compress(dense, CompressionPlan(rates=rates))
    restored, recovery = recover(compressed, dense, images[:3], report.kept, steps=1)
    assert [part.name for part in recovery] == ["stem", *(block.name for block in read_body(dense).blocks)]
    assert all(part.after <= part.before for part in recovery)
    assert restored(images[0][None]).isfinite().all()


def test_without_kept_channels_the_levels_are_targets(images, network):
    dense = detector("faster_rcnn", images)
    compressed, _ = compressed_by(notation(dense), dense)
    _, recovery = recover(compressed, dense, images[:9], steps=12)
    assert [part.name for part in recovery] == ["body and neck", "rpn", "box head", module.WHOLE]
    assert recovery[0].after < recovery[0].before
    with pytest.raises(ValueError, match="kept"):
        recover(compressed_by(PLAN, network)[0], network, images)


def test_what_is_held_does_not_grow_with_the_images(network, monkeypatch):
    compressed, report = compressed_by(PLAN, network)
    read, living, most = ActivationFile.read, weakref.WeakSet(), []

    class Images:
        def __len__(self):
            return 40

        def __getitem__(self, index):
            image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(index))
            living.add(image)
            most.append(len(living))
            return image

    def counted(file, chosen, *window):
        assert len(chosen) <= recovery_run.READ_SIZE
        return read(file, chosen, *window)

    monkeypatch.setattr(ActivationFile, "read", counted)
    recover(compressed, network, Images(), report.kept, steps=1)
    assert max(most) <= 2


def test_a_stopped_recovery_goes_on_to_the_same_weights(network, images, tmp_path, monkeypatch):
    compressed, report = compressed_by(PLAN, network)
    whole, expected = recover(compressed, network, images, report.kept, steps=8)
    calls = []

    def stopped(part, inputs, targets, how, refit):
        calls.append(how.name)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return distill(part, inputs, targets, how, refit)

    monkeypatch.setattr(recovery_run, "distill", stopped)
    kept_in = tmp_path / "recovery.pth"
    with pytest.raises(KeyboardInterrupt):
        recover(compressed, network, images, report.kept, steps=8, checkpoint=kept_in)
    resumed, recovery = recover(compressed, network, images, report.kept, steps=8, checkpoint=kept_in)
    assert calls[5:7] == ["layer2.1", "layer2.1"]
    assert recovery == expected
    assert all(torch.equal(v, resumed.state_dict()[name]) for name, v in whole.state_dict().items())


def test_stopped_in_its_second_phase_it_goes_on_without_the_first(images, tmp_path, monkeypatch):
    dense = detector("faster_rcnn", images)
    compressed, report = compressed_by(notation(dense), dense)
    few, kept_in = images[:6], tmp_path / "recovery.pth"
    whole, expected = recover(compressed, dense, few, report.kept, steps=5)
    save, calls = recovery_run.RecoveryRun.save_whole, []

    def stopped(run, state):
        save(run, state)
        calls.append(state["step"])
        if calls == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(recovery_run.RecoveryRun, "save_whole", stopped)
    with pytest.raises(KeyboardInterrupt):
        recover(compressed, dense, few, report.kept, steps=5, checkpoint=kept_in)
    monkeypatch.setattr(recovery_run, "distill", None)
    resumed, recovery = recover(compressed, dense, few, report.kept, steps=5, checkpoint=kept_in)
    assert calls == [1, 2, 3, 4, 5]
    assert recovery == expected
    assert all(torch.equal(v, resumed.state_dict()[name]) for name, v in whole.state_dict().items())


def test_minutes_that_the_parts_use_up_leave_the_whole_as_it_is(images, caplog):
    dense = detector("faster_rcnn", images)
    compressed, report = compressed_by(notation(dense), dense)
    _, recovery = recover(compressed, dense, images[:4], report.kept, steps=4, minutes=1e-6)
    assert recovery[-1].name == module.WHOLE and recovery[-1].before == recovery[-1].after > 0
    assert "the parts took the 1e-06 minutes" in caplog.text


@pytest.mark.parametrize("kind", ["damaged", "of another model"])
def test_a_file_of_finished_parts_that_cannot_be_used_is_told_and_passed_over(
    kind, network, images, tmp_path, caplog
):
    compressed, report = compressed_by(PLAN, network)
    kept_in = tmp_path / "recovery.pth"
    recover(compressed, network, images, report.kept, steps=0, checkpoint=kept_in)
    content = torch.load(kept_in, weights_only=True)
    if kind == "damaged":
        kept_in.write_bytes(kept_in.read_bytes()[:-500])
    else:
        torch.save(content | {"model": network.state_dict()}, kept_in)
    _, parts = recover(compressed, network, images, report.kept, steps=0, checkpoint=kept_in)
    assert parts == recover(compressed, network, images, report.kept, steps=0)[1]
    assert "recovery.pth: " in caplog.text and "; recovery starts afresh" in caplog.text


def test_settled_statistics_change_nothing_but_the_mode():
    torch.manual_seed(0)
    part = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)
    ).eval()
    for norm in (part[1], part[4]):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
    maps = torch.randn(12, 3, 16, 16)
    with torch.no_grad():
        expected = part(maps)
        settle_statistics(part, lambda: [part(few) for few in maps.split(5)])
        torch.testing.assert_close(part(maps), expected)
        torch.testing.assert_close(part.train()(maps), expected, rtol=1e-3, atol=1e-3)


def test_a_part_that_gets_worse_is_left_as_it_was(tmp_path):
    # what is trained on says the opposite of what is held back
    torch.manual_seed(0)
    part = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    maps = torch.randn(16, 3, 4, 4)
    wanted = part(maps).detach() * torch.where(torch.arange(16) < 2, 1.01, -9.0)[:, None, None, None]
    inputs, targets = [write(tmp_path / "inputs", maps)], [write(tmp_path / "targets", wanted)]
    state = copy.deepcopy(part.state_dict())
    before, after = distill(part, inputs, targets, Distillation("part", 3, 4, 4, 2, torch.Generator().manual_seed(0)))
    assert before == after == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())
    assert output_error(part, inputs, targets, range(16), 5) == pytest.approx(10 / 9, rel=0.01)


@pytest.fixture(scope="module")
def basic(images):
    return as_if_trained(tiny_classifier("resnet18"), images)


def changed_weights(dense):
    other = copy.deepcopy(dense)
    with torch.no_grad():
        other.layer3[0].conv2.weight[0].mul_(1.01)
    return other


OTHERS = {
    "another model of its shapes": {"change": changed_weights},
    "another choice of channels": {"criterion": "deviation"},
    "another image": {"select": lambda images: [*images[:-1], images[-1].flip(2)]},
    "another order": {"select": lambda images: images[::-1]},
    "fewer images": {"select": lambda images: images[:-1]},
    "more steps": {"steps": 2},
    "another seed": {"seed": 1},
    "another time": {"minutes": 1.0},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_recovery_is_not_taken(name, basic, images, tmp_path, caplog):
    path, few, other = tmp_path / "recovery.pth", images[:3], {"steps": 0, "seed": 0, "minutes": None} | OTHERS[name]
    plan = load_plan(notation(basic), read_body(basic))
    dense = other.get("change", copy.deepcopy)(basic)
    compressed, report = compress(dense, plan, other.get("criterion", "pabs"))
    given = other.get("select", list)(few)
    options = {key: other[key] for key in ("steps", "seed", "minutes")}
    recover(compressed, dense, given, report.kept, **options, checkpoint=path)
    compressed, report = compress(basic, plan)
    expected, _ = recover(compressed, basic, few, report.kept, steps=0)
    found, _ = recover(compressed, basic, few, report.kept, steps=0, checkpoint=path)
    assert "is of another recovery: this one starts afresh" in caplog.text
    assert all(torch.equal(v, found.state_dict()[name]) for name, v in expected.state_dict().items())


def test_a_recovery_of_other_kept_channels_is_another(basic, images, tmp_path, caplog):
    compressed, report = compressed_by(notation(basic), basic)
    other = report.kept | {"layer2": [index + 1 for index in report.kept["layer2"][:-1]] + [0]}
    recover(compressed, basic, images[:3], other, steps=0, checkpoint=tmp_path / "recovery.pth")
    recover(compressed, basic, images[:3], report.kept, steps=0, checkpoint=tmp_path / "recovery.pth")
    assert "is of another recovery" in caplog.text


def test_a_finished_recovery_is_taken_from_its_file(basic, images, tmp_path, monkeypatch):
    compressed, report = compressed_by(notation(basic), basic)
    path = tmp_path / "recovery.pth"
    expected, parts = recover(compressed, basic, images[:3], report.kept, steps=1, checkpoint=path)
    monkeypatch.setattr(recovery_run, "distill", None)
    found, same = recover(compressed, basic, images[:3], report.kept, steps=1, checkpoint=path)
    assert same == parts
    assert all(torch.equal(v, found.state_dict()[name]) for name, v in expected.state_dict().items())


def test_models_in_training_mode_are_restored_as_in_evaluation(network, images):
    compressed, report = compressed_by(PLAN, network)
    expected, errors = recover(compressed, network, images, report.kept, steps=0)
    training = [copy.deepcopy(model).train() for model in (compressed, network)]
    found, same = recover(*training, images, report.kept, steps=0)
    assert same == errors and not found.training
    assert all(torch.equal(v, found.state_dict()[name]) for name, v in expected.state_dict().items())


def test_the_heads_are_restored_on_regions_of_the_restored_pyramid(images, monkeypatch):
    dense = detector("faster_rcnn", images)
    freeze_batch_norms(dense)
    overwrite_eps(dense, 0.0)  # as torchvision does to its COCO detectors
    compressed, report = compressed_by(notation(dense), dense)
    seen = {}

    def noted(part, inputs, targets, how, refit):
        if how.name == "box head":
            seen.update(held=how.held, count=inputs[0].count, maps=inputs[0].read(range(16)))
        return distill(part, inputs, targets, how, refit)

    monkeypatch.setattr(recovery_run, "distill", noted)
    restored, _ = recover(compressed, dense, images, report.kept, steps=0)
    assert (seen["held"], seen["count"]) == (3 * 16, 17 * 16)  # every eighth of 17 images, 16 proposals each
    with torch.no_grad():
        batch, _ = dense.transform([images[0]])
        boxes, _ = dense.rpn(batch, dense.backbone(batch.tensors))
        levels = restored.backbone(batch.tensors)
    expected = dense.roi_heads.box_roi_pool(levels, [boxes[0][:16]], batch.image_sizes)
    torch.testing.assert_close(seen["maps"], expected, rtol=1e-3, atol=1e-3)
    assert restored.backbone.body["bn1"].eps == 1e-12


def test_a_classifier_is_restored_on_images_as_imagenet_has_them(network, images):
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    resized = Resize(256, antialias=True)(images[0])
    torch.testing.assert_close(module._normalised(network, images[0]), (resized - mean) / std)


def test_one_image_is_too_few(network, images):
    compressed, report = compressed_by(PLAN, network)
    with pytest.raises(ValueError, match="at least two images, got 1"):
        recover(compressed, network, images[:1], report.kept)
