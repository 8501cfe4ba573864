"""What must hold for any plan and any network: random plans of every kind of detector and classifier."""

import copy
import functools
import random

import pytest
import torch
from detectors import ALL_KINDS, BODIES, frames, tiny_classifier, tiny_detector
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from reference import silenced
from torch import nn
from torchvision.models import ResNet

import norton_det
from norton_det.compression.compress import compress
from norton_det.compression.plan import CompressionPlan
from norton_det.layers.cp_conv import CPConv2d
from norton_det.layers.low_rank_linear import LowRankLinear
from norton_det.models.channels import read_body
from norton_det.models.parts import PARTS, dense_head, part_layers, regions

NETWORKS = [
    *zip(
        ALL_KINDS,
        ("resnet50", "resnet18", "resnet50", "resnet18", "resnext50_32x4d", "resnet50", "resnet18", "resnet101"),
        strict=True,
    ),
    *((None, body) for body in BODIES),
]
EXAMPLES = settings(max_examples=max(1, settings().max_examples // 200), phases=[Phase.generate])
"""Seeds do not shrink."""


@functools.cache
def network(kind, body):
    return tiny_classifier(body) if kind is None else tiny_detector(kind, body)


def random_plan(model, seed):
    """A rank for some layers, others left dense; a rate for some groups; some parts, also such as it lacks."""
    draw, body = random.Random(seed), read_body(model)
    few = draw.sample(body.spatial, min(len(body.spatial), 5))
    rates = {name: draw.choice([0, 0.1, 0.3, 0.5, 0.7]) for name, g in body.groups.items() if not g.fixed}
    parts = draw.sample(list(PARTS), draw.randint(0, len(PARTS)))
    return CompressionPlan(
        {layer: draw.randint(1, 4) for layer in few},
        {name: rate for name, rate in rates.items() if draw.random() < 0.8},
        {part: draw.randint(1, 3) for part in parts},
    )


def decomposed(model, plan):
    """The same network with factors where a plan wants them, and all channels."""
    model, body = copy.deepcopy(model), read_body(model)
    ranks = {body.prefix + layer: rank for layer, rank in plan.ranks.items()}
    ranks |= {layer: rank for part, rank in plan.parts.items() for layer in part_layers(model, part)}
    for name, rank in ranks.items():
        layer = model.get_submodule(name)
        factorise = LowRankLinear.from_linear if isinstance(layer, nn.Linear) else CPConv2d.from_conv
        model.set_submodule(name, factorise(layer, rank))
    return model


@torch.no_grad()
def outputs(model):
    """What its networks give, one tensor after the other; of heads on regions for fixed regions of the pyramid."""
    image = torch.stack(frames(1, 64, 64))
    if isinstance(model, ResNet):
        return [model(image)]
    levels = model.backbone(image)
    values = dense_head(model)(list(levels.values()))
    found = [*levels.values(), *flat(values.values() if isinstance(values, dict) else values)]
    boxes = [torch.tensor([[4.0, 4.0, 40.0, 60.0], [20.0, 8.0, 60.0, 24.0]])]
    for pooler, head, predictor in regions(model).values():
        found += flat([predictor(head(pooler(levels, boxes, [(64, 64)])))])
    return found


def flat(values):
    """The tensors in nested sequences."""
    return [values] if isinstance(values, torch.Tensor) else [tensor for value in values for tensor in flat(value)]


@torch.no_grad()
def detections(model):
    """What a network gives for images, as tensors."""
    if isinstance(model, ResNet):
        return [model(torch.stack(frames(1, 64, 64)))]
    return [value for found in model.eval()(frames(2)) for value in found.values()]


def losses(model):
    if isinstance(model, ResNet):
        return [model(torch.stack(frames(2, 64, 64))).square().mean()]
    target = {"boxes": torch.tensor([[20.0, 20.0, 70.0, 75.0]]), "labels": torch.ones(1, dtype=torch.int64)}
    target["masks"] = torch.ones(1, 80, 100, dtype=torch.uint8)
    target["keypoints"] = torch.tensor([[40.0, 30.0, 1.0]]).expand(1, 17, 3)
    return list(model(frames(2), [target, target]).values())


@pytest.mark.parametrize(("kind", "body"), NETWORKS)
@EXAMPLES
@given(seed=st.integers(0, 2**32))
def test_any_plan_gives_a_network_that_runs_trains_and_comes_back_from_its_file(kind, body, seed, tmp_path_factory):
    dense = network(kind, body)
    plan = random_plan(dense, seed)
    compressed, report = compress(dense, plan)

    with silenced(decomposed(dense, plan), report.kept) as whole:
        expected = outputs(whole)
    for found, wanted in zip(outputs(compressed), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())

    path = tmp_path_factory.mktemp("any") / "compressed.pth"
    norton_det.save(compressed, path)
    loaded = norton_det.load_resnet(path) if kind is None else norton_det.load_detector(path)
    assert all(torch.equal(a, b) for a, b in zip(detections(compressed), detections(loaded), strict=True))
    assert (loaded.origin.plan, loaded.origin.kept) == (plan.to_dict(), report.kept)

    loaded.train()
    sum(losses(loaded)).backward()
    trained = {name for name, p in loaded.named_parameters() if p.grad is not None and p.grad.isfinite().all()}
    assert {name for name, _ in loaded.named_parameters()} == trained
