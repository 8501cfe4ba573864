"""What is seen of the layers of a network."""

import pytest
import torch
from torch import nn

from norton_det.analysis.watch import watch_inputs


def test_every_call_is_seen_while_it_lasts_and_none_after():
    first, second = nn.Linear(2, 3), nn.Linear(3, 3)
    network = nn.Sequential(first, second, second)
    x = torch.randn(4, 2)
    seen = []
    with watch_inputs({"a": first, "b": second}, lambda name, inputs: seen.append((name, inputs))):
        network(x)
    network(x)
    assert [name for name, _ in seen] == ["a", "b", "b"]
    assert torch.equal(seen[0][1], x)
    assert torch.equal(seen[2][1], second(first(x)))


def test_an_error_leaves_no_hooks():
    layer = nn.Linear(2, 3)
    with pytest.raises(RuntimeError), watch_inputs({"a": layer}, print):
        layer(torch.randn(1, 5))
    assert not layer._forward_pre_hooks
