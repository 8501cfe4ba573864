import copy

import pytest
import torch
from detectors import ALL_KINDS, frames, tiny_detector
from torch.distributions import Bernoulli, Categorical, kl_divergence

from norton_det.models import imitation as module
from norton_det.models.imitation import WEIGHTS, imitation_losses, pyramid_loss
from norton_det.models.parts import regions
from norton_det.models.smaller_images import for_smaller_images

OF_PLACES = ["pyramid", "places", "place boxes"]
OF_REGIONS = [*OF_PLACES, "classes", "boxes"]
TERMS = {
    "faster_rcnn": OF_REGIONS,
    "mask_rcnn": [*OF_REGIONS, "masks"],
    "keypoint_rcnn": [*OF_REGIONS, "keypoints"],
    "faster_rcnn_v2": OF_REGIONS,
    "mask_rcnn_v2": [*OF_REGIONS, "masks"],
    "retinanet": OF_PLACES,
    "retinanet_v2": OF_PLACES,
    "fcos": [*OF_PLACES, "centres"],
}


def changed(detector):
    other = copy.deepcopy(detector)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return other.requires_grad_(True)


def batch_of(detector, count=2):
    return detector.transform(frames(count))[0]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_term_is_nothing_for_the_teacher_itself_and_reaches_every_parameter_of_another(kind):
    teacher = tiny_detector(kind)
    student = changed(teacher)
    batch = batch_of(teacher)
    own = imitation_losses(teacher, teacher, batch)
    before = copy.deepcopy(teacher.state_dict())
    losses = imitation_losses(student, teacher, batch)
    assert list(losses) == list(own) == TERMS[kind]
    assert all(abs(own[name].item()) < 0.01 * loss.item() for name, loss in losses.items())
    torch.stack(list(losses.values())).sum().backward()
    untouched = {name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()}
    assert not untouched
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def said(detector, pyramid, kind, boxes, sizes):
    region = regions(detector)[kind]
    return region.predictor(region.head(region.pooler(pyramid, boxes, sizes)))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_student_of_smaller_images_learns_what_the_teacher_says_of_the_same_places(kind):
    """The terms are the same ones, reach every parameter, and fall where nothing but the resolution differs."""
    teacher = tiny_detector(kind)
    student = for_smaller_images(teacher, 0.5).requires_grad_(True).eval()
    batch = batch_of(teacher)
    losses = imitation_losses(student, teacher, batch)
    assert list(losses) == TERMS[kind]
    before = torch.stack(list(losses.values())).sum()
    before.backward()
    assert all(p.grad is not None for p in student.parameters())
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    for _ in range(8):
        optimizer.zero_grad()
        total = torch.stack(list(imitation_losses(student, teacher, batch).values())).sum()
        total.backward()
        optimizer.step()
    assert total.item() < 0.9 * before.item()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mask_rcnn", "keypoint_rcnn"])
def test_terms_of_an_rcnn_against_torchs_distributions(kind):
    teacher = tiny_detector(kind)
    student = changed(teacher)
    batch, sizes = batch_of(teacher), [(64, 80)] * 2
    assert batch.image_sizes == sizes
    losses = imitation_losses(student, teacher, batch)
    theirs, ours = (model.backbone(batch.tensors) for model in (teacher, student))

    # the RPN: every anchor of every level
    chances = [
        torch.cat([level.flatten() for level in model.rpn.head(list(pyramid.values()))[0]]).sigmoid()
        for model, pyramid in ((teacher, theirs), (student, ours))
    ]
    divergence = kl_divergence(*(Bernoulli(chance) for chance in chances)).sum() / chances[0].sum()
    assert losses["places"].item() == pytest.approx(WEIGHTS["places"] * divergence.item(), rel=1e-3)

    # the box head: the teacher's best proposals
    proposals = [boxes[: module.PROPOSALS] for boxes in teacher.rpn(batch, theirs)[0]]
    wanted, found = (
        said(model, pyramid, "box", proposals, sizes) for model, pyramid in ((teacher, theirs), (student, ours))
    )
    divergence = kl_divergence(*(Categorical(logits=logits) for logits, _ in (wanted, found))).mean()
    assert losses["classes"].item() == pytest.approx(divergence.item(), rel=1e-3)
    chance, distance = wanted[0].softmax(-1)[:, 1:], (wanted[1] - found[1]).abs().reshape(-1, 3, 4)[:, 1:].mean(-1)
    expected = WEIGHTS["boxes"] * (chance * distance).sum() / chance.sum()
    assert losses["boxes"].item() == pytest.approx(expected.item(), rel=1e-3)

    # what is behind it: the best that torchvision itself finds among those proposals
    teacher.rpn.forward = lambda *_: (proposals, {})
    results = teacher.roi_heads(theirs, proposals, sizes)[0]
    boxes = [result["boxes"][: module.DETECTIONS] for result in results]
    labels = torch.cat([result["labels"][: module.DETECTIONS] for result in results])
    part, name = ("mask", "masks") if kind == "mask_rcnn" else ("keypoint", "keypoints")
    wanted, found = (
        said(model, pyramid, part, boxes, sizes) for model, pyramid in ((teacher, theirs), (student, ours))
    )
    if part == "mask":
        chances = [
            torch.stack([logits[label] for logits, label in zip(maps, labels, strict=True)]).sigmoid()
            for maps in (wanted, found)
        ]
        divergence = kl_divergence(*(Bernoulli(chance) for chance in chances)).mean()
    else:
        divergence = kl_divergence(*(Categorical(logits=maps.flatten(2)) for maps in (wanted, found))).mean()
    assert losses[name].item() == pytest.approx(WEIGHTS[name] * divergence.item(), rel=1e-3)


@torch.no_grad()
def test_terms_of_fcos_against_torchs_distributions():
    teacher = tiny_detector("fcos")
    student = changed(teacher)
    batch = batch_of(teacher)
    losses = imitation_losses(student, teacher, batch)
    wanted, found = (model.head(list(model.backbone(batch.tensors).values())) for model in (teacher, student))
    chances = [output["cls_logits"].sigmoid() for output in (wanted, found)]
    weight = chances[0].amax(2)
    expected = kl_divergence(*(Bernoulli(chance) for chance in chances)).sum() / chances[0].sum()
    assert losses["places"].item() == pytest.approx(WEIGHTS["places"] * expected.item(), rel=1e-3)
    distance = (wanted["bbox_regression"] - found["bbox_regression"]).abs().mean(2)
    expected = (weight * distance).sum() / weight.sum()
    assert losses["place boxes"].item() == pytest.approx(WEIGHTS["place boxes"] * expected.item(), rel=1e-3)
    centres = [Bernoulli(logits=output["bbox_ctrness"][..., 0]) for output in (wanted, found)]
    expected = (weight * kl_divergence(*centres)).sum() / weight.sum()
    assert losses["centres"].item() == pytest.approx(WEIGHTS["centres"] * expected.item(), rel=1e-3)


def test_a_teacher_that_finds_nothing_says_nothing_of_masks():
    teacher = tiny_detector("mask_rcnn")
    teacher.roi_heads.score_thresh = 1.1
    assert list(imitation_losses(changed(teacher), teacher, batch_of(teacher))) == OF_REGIONS


def test_networks_in_bfloat16_give_losses_near_those_in_float32():
    teacher = tiny_detector("faster_rcnn")
    student, batch = changed(teacher), batch_of(teacher)
    exact, rough = (imitation_losses(student, teacher, batch, dtype) for dtype in (torch.float32, torch.bfloat16))
    for name, loss in rough.items():
        assert loss.dtype == torch.float32 and loss.item() != exact[name].item()
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.2)


def test_the_pyramid_loss_is_its_formula_whatever_the_scale():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        {level: torch.randn(2, 4, size, size, generator=generator) for level, size in (("0", 8), ("pool", 4))}
        for _ in range(2)
    )
    by_hand = 0.0
    for level, wanted in teacher.items():
        pairs = list(zip(student[level].flatten().tolist(), wanted.flatten().tolist(), strict=True))
        by_hand += sum((s - t) ** 2 for s, t in pairs) / sum(t**2 for _, t in pairs) / len(teacher)
    assert pyramid_loss(student, teacher).item() == pytest.approx(by_hand, rel=1e-5)
    scaled = [{"0": p["0"] * 100, "pool": p["pool"] / 100} for p in (student, teacher)]
    assert pyramid_loss(*scaled).item() == pytest.approx(by_hand, rel=1e-5)
    nothing = {level: torch.zeros_like(wanted) for level, wanted in teacher.items()}
    assert pyramid_loss(nothing, teacher).item() == pytest.approx(1)
