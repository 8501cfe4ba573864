import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import separable
from torch import Tensor, nn

from norton_det.layers.cp_conv import CPConv2d
from norton_det.ops.cp import decompose_filters
from norton_det.ops.factors import reconstruct, relative_error

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 3), "dilation": (1, 2)},
    {"kernel_size": (1, 2)},
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def gradients(layer: CPConv2d, run: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Gradients of a fixed random projection of the output: of the input, then of every parameter."""
    x = x.clone().requires_grad_()
    output = run(x)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return list(torch.autograd.grad((output * direction).sum(), [x, *layer.parameters()]))


def close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).norm() <= 1e-5 * expected.norm())


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_forms_equal_the_separable_stack(geometry, rank, bias):
    layer = CPConv2d(6, 8, rank=rank, bias=bias, **geometry)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = torch.randn(2, 6, 11, 13)
    expected = separable(layer, x)
    wanted = gradients(layer, lambda x: separable(layer, x), x)
    for form in ("depthwise", "dense"):
        layer.form = form
        assert close(layer(x), expected)
        for gradient, other in zip(gradients(layer, layer, x), wanted, strict=True):
            assert close(gradient, other)
        with torch.no_grad():
            assert close(layer(x), expected)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_to_conv_computes_the_same(geometry):
    layer = CPConv2d(6, 8, rank=2, **geometry).eval()
    conv = layer.to_conv()
    x = torch.randn(2, 6, 11, 13)
    assert close(conv(x), layer(x))
    assert not conv.training


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_from_conv_is_exact_at_full_rank(geometry):
    conv = nn.Conv2d(6, 8, **geometry)
    layer = CPConv2d.from_conv(conv, rank=conv.kernel_size[0] * conv.kernel_size[1])
    x = torch.randn(2, 6, 11, 13)
    assert close(layer(x), conv(x))


def test_from_conv_decomposes_and_draws_nothing():
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1)
    state = torch.get_rng_state()
    layer = CPConv2d.from_conv(conv, rank=2)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(layer.weight, reconstruct(decompose_filters(conv.weight, 2)))
    assert (relative_error(conv.weight, layer.factors) < 0.8).all()
    assert layer.bias is not None
    assert torch.equal(layer.bias, conv.bias)
    assert layer.bias.data_ptr() != conv.bias.data_ptr()


def test_from_conv_keeps_the_dtype():
    layer = CPConv2d.from_conv(nn.Conv2d(4, 4, 3, dtype=torch.float64), rank=1)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}


def test_channels_lie_component_by_component():
    layer = CPConv2d(4, 5, 3, rank=3)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "channel": (3, 5, 4),
        "vertical": (3, 5, 3),
        "horizontal": (3, 5, 3),
        "bias": (5,),
    }
    factors = layer.factors
    torch.testing.assert_close(factors.channel[3, :, 2], layer.channel[2, 3])
    torch.testing.assert_close(factors.vertical[3, :, 2], layer.vertical[2, 3])
    torch.testing.assert_close(factors.horizontal[3, :, 2], layer.horizontal[2, 3])


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("form", ["depthwise", "dense"])
@pytest.mark.parametrize("grad", [False, True])
def test_channels_last_stays(rank, form, grad):
    layer = CPConv2d(8, 16, 3, rank=rank, padding=1, form=form)
    x = torch.randn(2, 8, 9, 10)
    with torch.set_grad_enabled(grad):
        output = layer(x.contiguous(memory_format=torch.channels_last))
        assert output.is_contiguous(memory_format=torch.channels_last)
        assert close(output, layer(x))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_the_form_for_inference_computes_the_same(rank, bias):
    layer = CPConv2d(8, 12, (3, 5), rank=rank, stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=bias)
    x = torch.randn(2, 8, 19, 20)
    with torch.no_grad():
        if bias:
            layer.bias.normal_()
        fast = layer.to_depthwise()
        assert close(fast(x), layer(x))
        layer.vertical.zero_()
        assert fast(x).abs().max() > 0  # its numbers are its own


def saved_bytes(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no address is given twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(x)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("rank", [1, 3])
def test_keeps_the_input_and_one_activation(rank):
    layer = CPConv2d(16, 16, 3, rank=rank, padding=1)
    x = torch.randn(2, 16, 40, 40)
    ours = saved_bytes(layer, x)
    parameters = sum(p.nbytes for p in layer.parameters()) + rank * 16 * 9 * 4
    assert ours <= (1 + rank) * x.nbytes + parameters
    assert ours < saved_bytes(lambda x: separable(layer, x), x)


@pytest.mark.parametrize("rank", [1, 2])
def test_initial_filters_have_kaimings_variance(rank):
    weight = CPConv2d(256, 128, 3, rank=rank).weight
    expected = torch.empty(128, 256, 3, 3)
    nn.init.kaiming_normal_(expected, mode="fan_out", nonlinearity="relu")
    assert weight.mean().abs() < 0.1 * expected.std()
    assert weight.var().item() == pytest.approx(expected.var().item(), rel=0.2)


def test_select_filters_and_inputs():
    layer = CPConv2d(6, 8, 3, rank=2)
    nn.init.normal_(layer.bias)
    layer.vertical.requires_grad_(False)
    filters, inputs = torch.tensor([5, 0, 7]), torch.tensor([1, 4])
    dense = layer.to_conv()
    layer.select_filters(filters)
    layer.select_inputs(inputs)
    assert (layer.out_channels, layer.in_channels) == (3, 2)
    torch.testing.assert_close(layer.weight, dense.weight[filters][:, inputs])
    torch.testing.assert_close(layer.bias, dense.bias[filters])
    assert [p.requires_grad for p in layer.parameters()] == [True, False, True, True]
    assert layer(torch.randn(1, 2, 5, 5)).shape == (1, 3, 3, 3)
    CPConv2d(2, 3, 3, rank=2).load_state_dict(layer.state_dict())


def test_copies_and_state_dict():
    layer = CPConv2d(4, 5, 3, rank=2)
    other = CPConv2d(4, 5, 3, rank=2)
    other.load_state_dict(copy.deepcopy(layer).state_dict())
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize("form", ["depthwise", "dense"])
def test_compile_and_export(form):
    layer = CPConv2d(4, 5, 3, rank=3, padding=1, form=form)
    x = torch.randn(2, 4, 6, 7)
    expected, wanted = layer(x), gradients(layer, layer, x)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert close(compiled(x), expected)
    for gradient, other in zip(gradients(layer, compiled, x), wanted, strict=True):
        assert close(gradient, other)
    exported = torch.export.export(layer.eval(), (x,))
    assert close(exported.module()(x), expected)


def test_autocast_runs_in_bfloat16():
    layer = CPConv2d(8, 8, 3, rank=2, padding=1)
    x = torch.randn(1, 8, 10, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    assert (output - layer(x)).norm() < 0.02 * layer(x).norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": 1, "form": "fast"}, "depthwise, dense, got 'fast'"),
        ({"rank": 1, "padding": "same"}, "padding must be .* got 'same'"),
    ],
)
def test_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        CPConv2d(4, 4, 3, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 2}, "groups=2"),
        ({"padding": 1, "padding_mode": "reflect"}, "reflect"),
        ({"padding": "same"}, "same"),
    ],
)
def test_from_conv_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        CPConv2d.from_conv(nn.Conv2d(4, 4, 3, **options), rank=1)


def test_repr_says_rank_and_form():
    assert "rank=2" in repr(CPConv2d(4, 5, 3, rank=2)) and "form=depthwise" in repr(CPConv2d(4, 5, 3, rank=2))
