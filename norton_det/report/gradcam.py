"""Grad-CAM: which places of an image a model's score for one class rests on, and how alike two such maps are.

Of a classifier the map is that of its last stage. Of a detector it is that of the features pooled from one
detection's box: the score depends on nothing else, and a map of the whole image credits other objects too, since
Grad-CAM weighs a channel alike everywhere.

Source: Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization",
ICCV 2017; computed by captum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet50_Weights
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import resize_boxes

Model: TypeAlias = GeneralizedRCNN | ResNet
Box = tuple[float, float, float, float]
_IMAGENET: Any = ResNet50_Weights.IMAGENET1K_V1


@dataclass(frozen=True)
class Subject:
    """What is explained on an image, the same for every model: a class, and where.

    `picture` is what the maps are drawn on, uint8 RGB (3, H, W): a classifier's square crop, a detector's image.
    `area` is the part of it that they cover, xyxy in its pixels. `score` is the probability that the model gives it
    by which it was chosen.
    """

    label: int
    name: str
    score: float
    picture: Tensor
    area: Box


@dataclass(frozen=True)
class Explanation:
    """A model's maps (h, w), one a subject, and how alike each is to the reference model's."""

    name: str
    parameters: int
    maps: tuple[Tensor, ...]
    similarities: tuple[float, ...]

    @property
    def mean_similarity(self) -> float:
        """Over the subjects that have one."""
        return float(torch.tensor(self.similarities, dtype=torch.float64).nanmean())


def choose_subject(model: Model, image: Tensor, categories: Sequence[str], detection: int = 1) -> Subject:
    """A classifier's best class, or a detector's detection: 1 is the one of the highest score, 2 the next.

    The model is in evaluation mode; the image is float RGB (3, H, W) in 0 to 1. Raises ValueError where a detector
    finds fewer objects.
    """
    if isinstance(model, ResNet):
        return _best_class(model, image, categories)
    return _nth_detection(model, image, categories, detection)


def explain(
    name: str,
    model: Model,
    images: Sequence[Tensor],
    subjects: Sequence[Subject],
    reference: Explanation | None = None,
) -> Explanation:
    """The maps of a model, in evaluation mode, beside those of a reference (None: its own). Raises as `grad_cam`."""
    maps = tuple(grad_cam(model, image, subject) for image, subject in zip(images, subjects, strict=True))
    similarities = tuple(map(similarity, maps, reference.maps if reference else maps))
    return Explanation(name, sum(p.numel() for p in model.parameters()), maps, similarities)


def grad_cam(model: Model, image: Tensor, subject: Subject) -> Tensor:
    """The map of a subject, (h, w) over its area, at least 0; 7x7 with torchvision's sizes.

        map = relu( sum_c  mean_ij(d score / d A[c, i, j])  A[c] )

    A are the features (C, h, w), the score is the class's logit. The model, in evaluation mode, may be another than
    the one by which the subject was chosen, of the same classes. Raises ValueError where captum is not installed.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise ValueError("captum is not installed: pip install norton_det[gradcam]") from None
    if isinstance(model, ResNet):
        method, pixels = LayerGradCam(model, model.layer4), _preprocess(image)
    else:
        batch, _ = model.transform([image])
        box = resize_boxes(image.new_tensor([subject.area]), image.shape[1:], batch.image_sizes[0])
        scores = _BoxScores(model, box, batch.image_sizes[0])
        method, pixels = LayerGradCam(scores, model.roi_heads.box_roi_pool), batch.tensors
    cam: Tensor = method.attribute(pixels, subject.label, relu_attributions=True)
    return cam[0, 0].detach()


def similarity(cam: Tensor, reference: Tensor) -> float:
    """Pearson's correlation of two maps of one shape.

    A map that is the same everywhere is 0 alike; where that is the reference there is nothing to be like: NaN.
    """
    if reference.min() == reference.max():
        return math.nan
    if cam.min() == cam.max():
        return 0.0
    return float(torch.corrcoef(torch.stack([cam.flatten(), reference.flatten()]).double())[0, 1])


def class_names(described: object, count: int) -> list[str]:
    """A classifier's: those that its file says, else ImageNet's, whichever are as many; else numbers."""
    for names in (described, _IMAGENET.meta["categories"]):
        if isinstance(names, list) and len(names) == count:
            return names
    return [f"class {label}" for label in range(count)]


class _BoxScores(nn.Module):
    """A detector's class logits (1, classes) at a box (1, 4) of what enters its backbone (1, 3, H, W).

    `size` is that of the image in it, without the padding.
    """

    def __init__(self, detector: GeneralizedRCNN, box: Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        self.detector, self.box, self.size = detector, box, size

    def forward(self, pixels: Tensor) -> Tensor:
        heads = self.detector.roi_heads
        with torch.no_grad():
            levels = self.detector.backbone(pixels)
        regions = heads.box_roi_pool(levels, [self.box], [self.size])
        logits: Tensor = heads.box_predictor(heads.box_head(regions))[0]
        return logits


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
def _nth_detection(model: GeneralizedRCNN, image: Tensor, categories: Sequence[str], number: int) -> Subject:
    found = model([image])[0]
    if number > len(found["scores"]):
        raise ValueError(f"there is no detection {number}: the detector finds {len(found['scores'])} objects")
    chosen = found["scores"].argsort(descending=True, stable=True)[number - 1]
    label, score, (left, top, right, bottom) = (found[key][chosen].tolist() for key in ("labels", "scores", "boxes"))
    return Subject(label, categories[label], score, _as_bytes(image), (left, top, right, bottom))


def _preprocess(image: Tensor) -> Tensor:
    """An image as a classifier takes it, (1, 3, 224, 224)."""
    pixels: Tensor = _IMAGENET.transforms()(image)
    return pixels[None]


def _as_bytes(image: Tensor) -> Tensor:
    return (image * 255).round().clamp(0, 255).byte()
