"""Fresh predictors for other categories, and stages that are not trained."""

import pytest
import torch
from detectors import ALL_KINDS, frames, tiny_detector

from norton_det.models.categories import class_count
from norton_det.models.persistence import describe
from norton_det.models.predictors import freeze_stages, replace_predictors


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_replaced_predictors_have_the_new_classes_and_all_else_stays(kind):
    detector = tiny_detector(kind, "resnet18")
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    replace_predictors(detector, 6)
    assert class_count(detector) == 6
    after = detector.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("predictor" in name or "cls_logits" in name for name in changed)
    with torch.no_grad():
        [found] = detector(frames(1))
    assert not len(found["labels"]) or int(found["labels"].max()) < 6
    describe(detector)


@pytest.mark.parametrize(("stages", "frozen"), [(5, ()), (3, ("conv1", "bn1", "layer1")), (0, None)])
def test_the_first_stages_are_frozen(stages, frozen):
    detector = tiny_detector("retinanet", "resnet18")
    freeze_stages(detector, stages)
    for name, parameter in detector.backbone.body.named_parameters():
        assert parameter.requires_grad == (frozen is not None and name.split(".")[0] not in frozen)
    assert all(p.requires_grad for p in detector.head.parameters())


def test_more_stages_than_five_are_refused():
    with pytest.raises(ValueError, match="between 0 and 5, got 6"):
        freeze_stages(tiny_detector("fcos", "resnet18"), 6)
