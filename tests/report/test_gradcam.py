"""Class activation maps against closed forms and torch's autograd."""

import copy
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from norton_det.models.detectors import DetectorSettings, DetectorSpec, build_from_spec
from norton_det.models.resnet import ResNetSpec, build_resnet50
from torchvision.models import ResNet50_Weights
from torchvision.transforms.v2.functional import center_crop, normalize, resize

from norton_det.report.gradcam import Explanation, choose_subject, class_names, explain, grad_cam, similarity

NAMES = ["__background__", "dog", "cat"]


@pytest.fixture(scope="module")
def image():
    """Float RGB (3, 60, 90)."""
    coarse = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, scale_factor=10, mode="bilinear")[0]


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return build_resnet50(ResNetSpec.dense(0.125), num_classes=5).eval()


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    settings = DetectorSettings(min_size=(96,), max_size=160, test_proposals=30, score_threshold=0.0)
    return build_from_spec(DetectorSpec("faster_rcnn", 3, ResNetSpec.dense(0.125), 16, 32, settings=settings)).eval()


def as_it_enters(image):
    """By torchvision's functions, one after the other."""
    crop = center_crop(resize(image, 256, antialias=True), 224)
    return crop, normalize(crop, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]


def test_a_classifiers_map_is_cam(classifier, image):
    """Where a mean and a linear layer follow, Grad-CAM is CAM (Zhou et al. 2016) by the number of places."""
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


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_detectors_map_is_that_of_the_box(number, detector, image):
    """By hand: the box in the resized image's pixels, the head's gradient by the pooled features."""
    subject = choose_subject(detector, image, NAMES, number)
    pixels = F.interpolate(image[None], scale_factor=1.6, mode="bilinear", align_corners=False)  # 60 -> 96
    pixels = normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # (1, 3, 96, 144)
    pixels = F.pad(pixels, (0, 16))  # to a multiple of 32
    heads = detector.roi_heads
    with torch.no_grad():
        levels = detector.backbone(pixels)
        pooled = heads.box_roi_pool(levels, [torch.tensor([subject.area]) * 1.6], [(96, 144)])
    pooled.requires_grad_()
    heads.box_predictor(heads.box_head(pooled))[0][0, subject.label].backward()
    weights = pooled.grad[0].mean(dim=(1, 2))
    expected = sum(weight * plane for weight, plane in zip(weights, pooled.detach()[0], strict=True)).relu()
    cam = grad_cam(detector, image, subject)
    assert cam.shape == (7, 7)
    torch.testing.assert_close(cam, expected, rtol=1e-3, atol=1e-3 * float(expected.max()))
    assert expected.any() or number != 1


def test_a_detectors_subject_is_the_nth_of_its_detections(detector, image):
    with torch.no_grad():
        found = detector([image])[0]
    order = sorted(range(len(found["scores"])), key=lambda index: -float(found["scores"][index]))
    for number in (1, 3):
        subject = choose_subject(detector, image, NAMES, number)
        chosen = order[number - 1]
        assert subject.score == float(found["scores"][chosen])
        assert (subject.label, subject.name) == (int(found["labels"][chosen]), NAMES[found["labels"][chosen]])
        assert subject.area == tuple(found["boxes"][chosen].tolist())
    assert torch.equal(subject.picture, (image * 255).round().byte())
    with pytest.raises(ValueError, match=rf"no detection 1000: the detector finds {len(order)} objects"):
        choose_subject(detector, image, NAMES, 1000)


@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_a_model_is_like_itself_and_unlike_another(kind, image, request):
    model = request.getfixturevalue(kind)
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
