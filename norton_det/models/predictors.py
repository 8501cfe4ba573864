"""Changes what depends on the categories that a detector is to find, and what of it is trained."""

from typing import Any

from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

from norton_det.models.categories import keypoint_count
from norton_det.models.initial import draw
from norton_det.models.parts import regions


def replace_predictors(detector: nn.Module, num_classes: int) -> None:
    """Give a detector's predictors fresh weights for `num_classes` (background included), in place."""
    model: Any = detector
    predictors = {kind: region.predictor for kind, region in regions(detector).items()}
    if "box" in predictors:
        inputs = predictors["box"].cls_score.in_features
        model.roi_heads.box_predictor = FastRCNNPredictor(inputs, num_classes)
    if "mask" in predictors:
        inputs, hidden = predictors["mask"].conv5_mask.weight.shape[:2]
        model.roi_heads.mask_predictor = MaskRCNNPredictor(inputs, hidden, num_classes)
    if "keypoint" in predictors:
        replace_keypoint_predictor(detector, keypoint_count(detector))
    if not predictors:
        head = model.head.classification_head
        old = head.cls_logits
        head.cls_logits = nn.Conv2d(old.in_channels, head.num_anchors * num_classes, old.kernel_size, padding=1)
        draw("head.classification_head.cls_logits", head.cls_logits)
        head.num_classes = num_classes


def replace_keypoint_predictor(detector: nn.Module, num_keypoints: int) -> None:
    """Give a Keypoint R-CNN's keypoint predictor fresh weights for `num_keypoints`, in place."""
    model: Any = detector
    inputs = model.roi_heads.keypoint_predictor.kps_score_lowres.in_channels
    model.roi_heads.keypoint_predictor = KeypointRCNNPredictor(inputs, num_keypoints)


def freeze_stages(detector: nn.Module, trainable_stages: int) -> None:
    """Train only the last `trainable_stages` of the body's five (stem, layer1 .. layer4), as torchvision counts.

    Raises ValueError outside 0 to 5.
    """
    if not 0 <= trainable_stages <= 5:
        raise ValueError(f"trainable_stages must lie between 0 and 5, got {trainable_stages}")
    model: Any = detector
    frozen = ("stem", "layer1", "layer2", "layer3", "layer4")[: 5 - trainable_stages]
    for name, parameter in model.backbone.body.named_parameters():
        stage = name.partition(".")[0]
        if (stage if stage.startswith("layer") else "stem") in frozen:
            parameter.requires_grad_(False)
