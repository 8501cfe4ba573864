import pytest
import torch
from norton_det.models.resnet import GROUPS, ResNetSpec, build_resnet50
from torchvision.models import resnet50

from norton_det.compression.plan import load_plan


def test_dense_network_is_torchvisions():
    torch.manual_seed(0)
    theirs, ours = resnet50().eval(), build_resnet50(ResNetSpec.dense()).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_every_convolution_belongs_to_one_group():
    convolutions = [name for name, module in resnet50().named_modules() if isinstance(module, torch.nn.Conv2d)]
    produced = [conv for group in GROUPS.values() for conv, _ in group.producers]
    consumed = [conv for group in GROUPS.values() for conv in group.consumers]
    assert sorted(produced) == sorted(convolutions)
    assert sorted(consumed) == sorted([*convolutions[1:], "fc"])


def test_random_weights_keep_torchvisions_scale():
    torch.manual_seed(0)
    network = build_resnet50(ResNetSpec.dense())
    theirs = resnet50()
    for name in ("conv1", "layer2.0.conv3", "layer4.2.conv2"):
        expected = theirs.get_submodule(name).weight.std()
        torch.testing.assert_close(network.get_submodule(name).weight.std(), expected, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("preset", "parameters"), [("norton-43", 14_509_496), ("norton-59", 10_525_342), ("norton-77", 5_885_736)]
)
def test_published_parameter_counts(preset, parameters):
    network = build_resnet50(load_plan(preset).apply(ResNetSpec.dense()))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_structure_is_read_back_from_tensors():
    spec = load_plan("norton-77", rank=2).apply(ResNetSpec.dense(0.25))
    assert ResNetSpec.from_state_dict(build_resnet50(spec).state_dict()) == spec


def test_foreign_tensors_are_refused():
    with pytest.raises(ValueError, match=r"bn1\.weight is missing"):
        ResNetSpec.from_state_dict({"weight": torch.zeros(1)})
