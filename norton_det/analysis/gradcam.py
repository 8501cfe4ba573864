"""Computes Grad-CAM: which places of an image a model's score for a class rests on, and how alike two maps are.

For a classifier the map is that of its last stage. For an R-CNN it is that of the features pooled from one
detection's box. For a one-stage detector it is that of the level about the place that gave the detection, as far as
its head sees. The score depends on nothing else, and a map of the whole image would credit other objects too, since
Grad-CAM weights a channel alike everywhere.

Source: Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization",
ICCV 2017; computed by captum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet50_Weights
from torchvision.models.detection.transform import resize_boxes

from norton_det.analysis.places import Box, Place, find_place
from norton_det.models.parts import regions

_IMAGENET: Any = ResNet50_Weights.IMAGENET1K_V1


@dataclass(frozen=True)
class Subject:
    """Says what is explained on an image, the same for every model: a class, and where.

    Attributes:
        label, name: the class's.
        score: the probability that the model by which it was chosen gives the class.
        picture: what the maps are drawn on, uint8 RGB (3, H, W): a classifier's square crop, a detector's image.
        area: the part of the picture that the maps cover, xyxy in its pixels.
        place: for a one-stage detector's detection, the anchor that gave it.
    """

    label: int
    name: str
    score: float
    picture: Tensor
    area: Box
    place: Place | None = None

    @property
    def title(self) -> str:
        """Return the class and its probability, such as "dog 87%"."""
        return f"{self.name} {self.score:.0%}"


def choose_subject(model: nn.Module, image: Tensor, categories: Sequence[str], detection: int = 1) -> Subject:
    """Choose a classifier's best class, or a detector's detection: 1 has the highest score, 2 the next.

    The model is in evaluation mode; the image is float RGB (3, H, W) in 0 to 1. Raises ValueError where a detector
    finds fewer objects.
    """
    if isinstance(model, ResNet):
        return _best_class(model, image, categories)
    return _nth_detection(model, image, categories, detection)


def grad_cam(model: nn.Module, image: Tensor, subject: Subject) -> Tensor:
    """Compute the map of a subject, (h, w) over its area, at least 0.

        map = relu( sum_c  mean_ij(d score / d A[c, i, j])  A[c] )

    A are the features (C, h, w), the score is the class's logit. Maps are 7x7 with the sizes of torchvision's
    classifiers and R-CNNs, and at most 11x11 for its one-stage detectors. The model, in evaluation mode, may be
    another one than the subject was chosen by, if it has the same classes. Raises ValueError where captum is not
    installed.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise ValueError("captum is not installed: pip install norton_det[gradcam]") from None
    scores: Any
    if isinstance(model, ResNet):
        scores, features, pixels = model, model.layer4, _preprocess(image)
    else:
        scores, pixels = _detector_scores(model, image, subject)
        features = scores.features
    cam: Tensor = LayerGradCam(scores, features).attribute(pixels, subject.label, relu_attributions=True)
    height, width = cam.shape[2:]
    top, left, bottom, right = subject.place.window if subject.place else (0, 0, height, width)
    return cam[0, 0, top:bottom, left:right].detach()


def similarity(cam: Tensor, reference: Tensor) -> float:
    """Compute Pearson's correlation of two maps of one shape.

    It is 0 for a map that is the same everywhere, and NaN where the reference is the same everywhere.
    """
    if reference.min() == reference.max():
        return math.nan
    if cam.min() == cam.max():
        return 0.0
    return float(torch.corrcoef(torch.stack([cam.flatten(), reference.flatten()]).double())[0, 1])


def _detector_scores(detector: Any, image: Tensor, subject: Subject) -> tuple[nn.Module, Tensor]:
    """Return a module that computes the class logits at a subject from a backbone's input, and that input."""
    batch, _ = detector.transform([image])
    if subject.place is not None:
        return _PlaceScores(detector, subject.place), batch.tensors
    box = resize_boxes(image.new_tensor([subject.area]), image.shape[1:], batch.image_sizes[0])
    return _BoxScores(detector, box, batch.image_sizes[0]), batch.tensors


class _BoxScores(nn.Module):
    """Computes an R-CNN's class logits (1, classes) at a box (1, 4) from its backbone's input (1, 3, H, W).

    `size` is that of the image in the input, without the padding. What is pooled passes through `features`.
    """

    def __init__(self, detector: Any, box: Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        self.detector, self.box, self.size = detector, box, size
        self.features = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            levels = self.detector.backbone(pixels)
        pooler, head, predictor = regions(self.detector)["box"]
        logits: Tensor = predictor(head(self.features(pooler(levels, [self.box], [self.size]))))[0]
        return logits


class _PlaceScores(nn.Module):
    """Computes a one-stage detector's class logits (1, classes) at an anchor from its backbone's input (1, 3, H, W);
    the anchor's level passes through `features`."""

    def __init__(self, detector: Any, place: Place) -> None:
        super().__init__()
        self.detector, self.place = detector, place
        self.features = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            levels = [*self.detector.backbone(pixels).values()]
        logits: Tensor = self.detector.head.classification_head([self.features(levels[self.place.level])])
        return logits[:, self.place.index]


@torch.inference_mode()
def _best_class(model: ResNet, image: Tensor, categories: Sequence[str]) -> Subject:
    pixels = _preprocess(image)
    score, label = model(pixels)[0].softmax(dim=0).max(dim=0)
    preset = _IMAGENET.transforms()
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (preset.mean, preset.std))
    picture = _as_bytes(pixels[0] * std + mean)
    height, width = picture.shape[1:]
    return Subject(int(label), categories[int(label)], float(score), picture, (0.0, 0.0, width, height))


@torch.inference_mode()
def _nth_detection(model: Any, image: Tensor, categories: Sequence[str], number: int) -> Subject:
    found = model([image])[0]
    if number > len(found["scores"]):
        raise ValueError(f"there is no detection {number}: the detector finds {len(found['scores'])} objects")
    chosen = found["scores"].argsort(descending=True, stable=True)[number - 1]
    label, score, box = int(found["labels"][chosen]), float(found["scores"][chosen]), found["boxes"][chosen]
    left, top, right, bottom = box.tolist()
    place, area = None, (left, top, right, bottom)
    if not regions(model):
        place, area = find_place(model, image, box, label, score)
    return Subject(label, categories[label], score, _as_bytes(image), area, place)


def _preprocess(image: Tensor) -> Tensor:
    """Return an image as a classifier takes it, (1, 3, 224, 224)."""
    pixels: Tensor = _IMAGENET.transforms()(image)
    return pixels[None]


def _as_bytes(image: Tensor) -> Tensor:
    return (image * 255).round().clamp(0, 255).byte()
