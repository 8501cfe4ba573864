"""Class activation maps against closed forms and torch's autograd."""

import copy
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from detectors import tiny_classifier, tiny_detector
from torchvision.models import ResNet50_Weights
from torchvision.transforms.v2.functional import center_crop, normalize, resize

from norton_det.analysis.explanations import Explanation, class_names, explain
from norton_det.analysis.gradcam import choose_subject, grad_cam, similarity
from norton_det.compression.compress import compress
from norton_det.compression.plan import load_plan
from norton_det.models.channels import read_body
from norton_det.models.settings import write_settings

NAMES = ["__background__", "dog", "cat"]
RCNNS = ("faster_rcnn", "mask_rcnn", "keypoint_rcnn", "faster_rcnn_v2", "mask_rcnn_v2")
ONE_STAGE = ("retinanet", "retinanet_v2", "fcos")
ENTERS = 160, 240
"""(height, width) in pixels of the image as it enters a detector, which pads it to 160 x 256."""


@pytest.fixture(scope="module")
def image():
    """Float RGB (3, 60, 90)."""
    coarse = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, scale_factor=10, mode="bilinear")[0]


@pytest.fixture(scope="module")
def classifier():
    return tiny_classifier("resnet18", classes=5)


@pytest.fixture(scope="module")
def detectors():
    """By kind, with heads that tell places apart."""
    built = {}
    for kind in RCNNS + ONE_STAGE:
        detector = tiny_detector(kind, "resnet18" if kind in RCNNS else "resnet50", channels=64)
        write_settings(detector, {"min_size": ENTERS[:1], "max_size": ENTERS[1]})
        for name, parameter in detector.named_parameters():
            if name.startswith("head.") and parameter.ndim == 4:
                torch.nn.init.normal_(parameter, std=0.06)
        built[kind] = detector
    return built


def as_it_enters(image):
    """By torchvision's functions, one after the other."""
    crop = center_crop(resize(image, 256, antialias=True), 224)
    return crop, normalize(crop, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]


@pytest.mark.parametrize("body", ["resnet18", "resnet50", "resnet101"])
def test_a_classifiers_map_is_cam(body, image):
    """Where a mean and a linear layer follow, Grad-CAM is CAM (Zhou et al. 2016) by the number of places."""
    classifier = tiny_classifier(body, classes=5)
    subject = choose_subject(classifier, image, ["a", "b", "c", "d", "e"])
    _, pixels = as_it_enters(image)
    features = []
    with classifier.layer4.register_forward_hook(lambda *call: features.append(call[2])), torch.no_grad():
        classifier(pixels)
    [[maps]] = features
    expected = torch.einsum("c,chw->hw", classifier.fc.weight[subject.label], maps).relu() / 49
    cam = grad_cam(classifier, image, subject)
    assert cam.shape == (7, 7) and cam.any() and not cam.requires_grad
    torch.testing.assert_close(cam, expected.detach(), rtol=1e-4, atol=1e-6)


def test_a_classifiers_subject_is_its_best_class_on_the_crop(classifier, image):
    subject = choose_subject(classifier, image, ["a", "b", "c", "d", "e"])
    crop, pixels = as_it_enters(image)
    with torch.no_grad():
        probabilities = classifier(pixels)[0].softmax(dim=0)
    assert subject.label == int(probabilities.argmax())
    assert subject.name == "abcde"[subject.label]
    assert subject.score == pytest.approx(float(probabilities.max()), abs=1e-5)
    assert subject.area == (0, 0, 224, 224)
    assert (subject.picture.float() / 255 - crop).abs().max() < 0.6 / 255


def as_it_enters_a_detector(image):
    pixels = F.interpolate(image[None], ENTERS, mode="bilinear", align_corners=False)
    return F.pad(normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), (0, 16))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kind", RCNNS)
def test_an_rcnns_map_is_that_of_the_box(kind, number, detectors, image):
    """By hand: the box in the resized image's pixels, the head's gradient by the pooled features."""
    detector = detectors[kind]
    subject = choose_subject(detector, image, NAMES, number)
    heads = detector.roi_heads
    with torch.no_grad():
        levels = detector.backbone(as_it_enters_a_detector(image))
        pooled = heads.box_roi_pool(levels, [torch.tensor([subject.area]) * ENTERS[0] / 60], [ENTERS])
    pooled.requires_grad_()
    heads.box_predictor(heads.box_head(pooled))[0][0, subject.label].backward()
    weights = pooled.grad[0].mean(dim=(1, 2))
    expected = sum(weight * plane for weight, plane in zip(weights, pooled.detach()[0], strict=True)).relu()
    cam = grad_cam(detector, image, subject)
    assert subject.place is None and cam.shape == (7, 7)
    torch.testing.assert_close(cam, expected, rtol=1e-3, atol=1e-3 * float(expected.max()))


def anchor_boxes(kind, outputs, anchors):
    """The boxes (n, 4) that anchors (n, 4) become, by the papers' formulas."""
    x1, y1, x2, y2 = anchors.unbind(1)
    width, height, x, y = x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2
    a, b, c, d = outputs.unbind(1)
    if kind == "fcos":  # distances to the four sides, in lengths of the anchor
        return torch.stack([x - a * width, y - b * height, x + c * width, y + d * height], dim=1)
    x, y, width, height = x + a * width, y + b * height, width * c.exp(), height * d.exp()
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=1)


@pytest.mark.parametrize("kind", ONE_STAGE)
def test_the_place_of_a_detection_is_where_its_box_and_its_score_come_from(kind, detectors, image):
    detector = detectors[kind]
    pixels = as_it_enters_a_detector(image)
    with torch.no_grad():
        levels = list(detector.backbone(pixels).values())
        found = detector([image])[0]
    met = set()
    for number in (1, 2, 5, 10, 20):
        subject = choose_subject(detector, image, NAMES, number)
        level = subject.place.level
        with torch.no_grad():
            outputs = detector.head([levels[level]])
        per_cell = 1 if kind == "fcos" else 9
        row, column = divmod(subject.place.index // per_cell, levels[level].shape[3])
        [base] = detector.anchor_generator.cell_anchors[level : level + 1]
        stride = torch.tensor([256 // levels[level].shape[3], 160 // levels[level].shape[2]] * 2)
        anchor = base[subject.place.index % per_cell] + stride * torch.tensor([column, row] * 2)
        [box] = anchor_boxes(kind, outputs["bbox_regression"][0, [subject.place.index]], anchor[None])
        box = torch.minimum(box.clamp(min=0), torch.tensor([ENTERS[1], ENTERS[0]] * 2)) * 60 / ENTERS[0]
        chosen = found["scores"].argsort(descending=True, stable=True)[number - 1]
        torch.testing.assert_close(box, found["boxes"][chosen], rtol=1e-4, atol=1e-3)
        score = outputs["cls_logits"][0, subject.place.index, subject.label].sigmoid()
        if kind == "fcos":
            score = (score * outputs["bbox_ctrness"][0, subject.place.index, 0].sigmoid()).sqrt()
        assert float(score) == pytest.approx(subject.score, abs=1e-5)
        met.add((level, row, column))
    assert len(met) > 2


@pytest.mark.parametrize("number", [1, 2, 5, 20])
@pytest.mark.parametrize("kind", ONE_STAGE)
def test_a_map_of_one_stage_is_that_of_the_level_about_the_place(kind, number, detectors, image):
    """By hand: the head's gradient by the level's map, and the cells whose gradient is not zero."""
    detector = detectors[kind]
    subject = choose_subject(detector, image, NAMES, number)
    with torch.no_grad():
        level = list(detector.backbone(as_it_enters_a_detector(image)).values())[subject.place.level]
    level.requires_grad_()
    logits = detector.head.classification_head([level])
    logits[0, subject.place.index, subject.label].backward()
    expected = torch.einsum("c,chw->hw", level.grad[0].mean(dim=(1, 2)), level.detach()[0]).relu()
    top, left, bottom, right = subject.place.window
    expected = expected[top:bottom, left:right]
    cam = grad_cam(detector, image, subject)
    torch.testing.assert_close(cam, expected, rtol=1e-3, atol=1e-3 * float(expected.max()))
    rows, columns = (level.grad[0].abs().sum(dim=(0, side)).nonzero() for side in (2, 1))
    inside = math.ceil(240 * level.shape[3] / 256)  # cells that begin in the picture, not in its padding
    seen = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, min(int(columns[-1]) + 1, inside)
    if kind == "retinanet":  # GroupNorm sees a little of every cell
        assert subject.place.window == seen
    scale = 60 / ENTERS[0]
    high, wide = 160 / level.shape[2], 256 / level.shape[3]
    expected_area = left * wide * scale, top * high * scale, min(right * wide, 240) * scale, bottom * high * scale
    assert subject.area == pytest.approx(expected_area, abs=1e-3)
    assert bottom - top <= 11 and right - left <= 11


@pytest.mark.parametrize("kind", ["faster_rcnn_v2", *ONE_STAGE])
def test_a_compressed_detector_is_explained_at_the_same_place(kind, detectors, image):
    detector = detectors[kind]
    subject = choose_subject(detector, image, NAMES)
    reference = explain("dense", detector, [image], [subject])
    entries = "[0.1]*20" if kind in ONE_STAGE else "[0.1]*12"
    plan = {"notation": entries, "parts": {"classification_head": 1, "box_convs": 1}}
    compressed, _ = compress(detector, load_plan(plan, read_body(detector)))
    explanation = explain("small", compressed.eval(), [image], [subject], reference)
    assert explanation.maps[0].shape == reference.maps[0].shape
    assert explanation.parameters < reference.parameters
    assert explanation.similarities[0] < 0.9999


@pytest.mark.parametrize("kind", ["faster_rcnn", "fcos"])
def test_a_detectors_subject_is_the_nth_of_its_detections(kind, detectors, image):
    detector = detectors[kind]
    with torch.no_grad():
        found = detector([image])[0]
    order = sorted(range(len(found["scores"])), key=lambda index: -float(found["scores"][index]))
    for number in (1, 3):
        subject = choose_subject(detector, image, NAMES, number)
        chosen = order[number - 1]
        assert subject.score == float(found["scores"][chosen])
        assert (subject.label, subject.name) == (int(found["labels"][chosen]), NAMES[found["labels"][chosen]])
        if kind == "faster_rcnn":
            assert subject.area == tuple(found["boxes"][chosen].tolist())
    assert torch.equal(subject.picture, (image * 255).round().byte())
    with pytest.raises(ValueError, match=rf"no detection 1000: the detector finds {len(order)} objects"):
        choose_subject(detector, image, NAMES, 1000)


@pytest.mark.parametrize("kind", ["classifier", "faster_rcnn", "retinanet"])
def test_a_model_is_like_itself_and_unlike_another(kind, image, classifier, detectors):
    model = classifier if kind == "classifier" else detectors[kind]
    subjects = [choose_subject(model, image, ["a", "b", "c", "d", "e"])]
    reference = explain("dense", model, [image], subjects)
    assert explain("same", model, [image], subjects, reference).similarities == (pytest.approx(1),)
    assert reference.parameters == sum(p.numel() for p in model.parameters())
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for parameter in other.parameters():
        if parameter.ndim > 1:
            shuffled = parameter.flatten()[torch.randperm(parameter.numel(), generator=generator)]
            parameter.data = shuffled.detach().view_as(parameter)
    assert explain("other", other, [image], subjects, reference).mean_similarity < 0.9


def test_similarity_is_pearsons_correlation():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.rand(2, 7, 5, generator=generator)
    x, y = ours.flatten().tolist(), theirs.flatten().tolist()
    mean_x, mean_y = sum(x) / 35, sum(y) / 35
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    spread = math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))
    assert similarity(ours, theirs) == pytest.approx(covariance / spread)
    assert similarity(3 * theirs + 1, theirs) == pytest.approx(1)
    assert similarity(1 - theirs, theirs) == pytest.approx(-1)


def test_a_map_without_places_is_like_none():
    cam, constant = torch.rand(7, 7), torch.full((7, 7), 0.1)
    assert similarity(constant, cam) == 0
    assert math.isnan(similarity(cam, constant))
    assert math.isnan(similarity(constant, constant))
    explanation = Explanation("small", 1, (), (0.5, math.nan, 0.25))
    assert explanation.mean_similarity == pytest.approx(0.375)


def test_class_names():
    imagenet = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    assert class_names(["x", "y"], 2) == ["x", "y"]
    assert class_names(None, 1000) == imagenet
    assert class_names(["x", "y"], 3) == ["class 0", "class 1", "class 2"]


def test_captum_is_an_extra(classifier, image, monkeypatch):
    subject = choose_subject(classifier, image, ["a", "b", "c", "d", "e"])
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ValueError, match=r"pip install norton_det\[gradcam\]"):
        grad_cam(classifier, image, subject)
