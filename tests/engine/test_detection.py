"""Distillation on the pyramid: what the teacher adds to the losses, and what it leaves alone."""

import pytest
import torch
from detectors import tiny_detector
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.engine.detection import detection_losses
from norton_det.models.norms import freeze_batch_norms
from norton_det.models.settings import write_settings

CPU = torch.device("cpu")
EACH_KIND = pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "fcos"])


def make(kind="faster_rcnn", seed=0):
    detector = tiny_detector(kind, "resnet18", seed=seed)
    write_settings(detector, {"min_size": (64, 96), "max_size": 128})
    return detector.train()


def batch():
    images = torch.rand(2, 3, 80, 96, generator=torch.Generator().manual_seed(1))
    target = {"boxes": torch.tensor([[20.0, 20.0, 70.0, 75.0]]), "labels": torch.ones(1, dtype=torch.int64)}
    return list(images), [target, target]


def losses(model, **options):
    torch.manual_seed(2)  # the size and the sampled regions
    return detection_losses(model, batch(), device=CPU, **options)


def losses_of_torchvision(model):
    torch.manual_seed(2)
    return model(*batch())


@EACH_KIND
def test_a_teacher_adds_a_loss_that_is_zero_where_the_student_equals_it(kind):
    student, teacher = make(kind), make(kind)
    for model in (student, teacher):
        freeze_batch_norms(model)  # so that neither takes statistics of the batch
    alone, taught = losses(student), losses(student, teacher=teacher)
    assert taught.pop("loss_distillation").item() == 0
    assert taught == alone


def test_the_weight_scales_it():
    student, teacher = make(), make(seed=1)
    once, thrice = (losses(student, teacher=teacher, distill_weight=w)["loss_distillation"] for w in (1, 3))
    assert thrice.item() == pytest.approx(3 * once.item(), rel=1e-5)


@EACH_KIND
def test_the_gradient_reaches_the_student_alone_and_the_teacher_stays(kind):
    student, teacher = make(kind), make(kind, seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    losses(student, teacher=teacher)["loss_distillation"].backward()
    assert {name for name, p in student.named_parameters() if p.grad is not None} == {
        name for name, _ in student.named_parameters() if name.startswith("backbone.")
    }
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@EACH_KIND
def test_one_pass_each_on_the_very_same_tensor(kind):
    student, teacher = make(kind), make(kind, seed=1)
    entered = {"student": [], "teacher": []}
    hooks = [
        model.backbone.body.register_forward_pre_hook(lambda _, inputs, name=name: entered[name].append(inputs[0]))
        for name, model in (("student", student), ("teacher", teacher))
    ]
    losses(student, teacher=teacher)
    for hook in hooks:
        hook.remove()
    [[ours], [theirs]] = entered.values()
    assert ours is theirs
    assert not student.backbone._forward_hooks


@EACH_KIND
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_lower_precision_gives_nearly_the_same(precision, kind):
    student, teacher = make(kind), make(kind, seed=1)
    freeze_batch_norms(student)
    assert any(isinstance(module, FrozenBatchNorm2d) for module in student.modules())
    exact = losses(student, teacher=teacher)["loss_distillation"]
    rounded = losses(student, teacher=teacher, precision=precision)["loss_distillation"]
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_losses_and_gradients_are_those_of_torchvisions_own_pooling():
    detector = make()
    freeze_batch_norms(detector)
    found, gradients = {}, {}
    for name, step in {"ours": losses, "theirs": losses_of_torchvision}.items():
        detector.zero_grad()
        found[name] = step(detector)
        sum(found[name].values()).backward()
        gradients[name] = {of: p.grad.clone() for of, p in detector.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found["ours"], found["theirs"])
    torch.testing.assert_close(gradients["ours"], gradients["theirs"], rtol=1e-4, atol=1e-6)
