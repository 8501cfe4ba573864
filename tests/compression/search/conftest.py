"""What every test of the search stands on: few choices, small crops, and a network whose layers matter."""

import pytest
import torch
from searched_models import FEW_RANKS, RANK_ONE
from torch import nn

from norton_det.compression.building import build_network
from norton_det.compression.search import options as search_options
from norton_det.compression.search import plan_search as search
from norton_det.layers.cp_conv import CPConv2d
from norton_det.models.parts import LINEAR_PART, PARTS
from norton_det.models.structure import named_structure


@pytest.fixture(scope="module")
def network():
    """A ResNet-50 whose layers all matter, but for one that CP of rank 1 loses nothing of."""
    torch.manual_seed(0)
    network = build_network(named_structure(None, "resnet50", 10), width=0.125).eval()
    generator = torch.Generator().manual_seed(2)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.weight.data.uniform_(0.3, 1, generator=generator)
        norm.bias.data.uniform_(-0.2, 0.2, generator=generator)
    layer = network.get_submodule(RANK_ONE)
    layer.weight.data = CPConv2d.from_conv(layer, 1).weight.data
    return network


@pytest.fixture(scope="module", autouse=True)
def small_crops_and_few_ranks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "IMAGE_SIZE", 64)
        patch.setattr(search_options, "RANKS", FEW_RANKS)
        for part in set(PARTS) - {LINEAR_PART}:
            patch.setitem(search_options.PART_RANKS, part, FEW_RANKS)
        yield
