"""What must hold for any filters, layers and masks, on random ones."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from reference import separable

from norton_det.data.catalog import Categories
from norton_det.evaluation.results import to_results
from norton_det.layers.cp_conv import CPConv2d
from norton_det.ops.cp import decompose_filters
from norton_det.ops.factors import reconstruct

SEEDS = st.integers(0, 2**32)
CONVERGED = 1e-5
"""Alternating least squares stops where a sweep gains little: so much of the filters may be left."""


def generator(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def filters(draw):
    """Random filters (K, C, kh, kw), float64."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 7)), draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    return torch.randn(shape, generator=generator(draw(SEEDS)), dtype=torch.float64)


def error(weight, rank):
    return (weight - reconstruct(decompose_filters(weight, rank))).norm()


@settings(max_examples=40)
@given(filters())
def test_the_error_never_rises_with_the_rank(weight):
    errors = [error(weight, rank) for rank in (1, 2, 3, 4)]
    for lower, higher in itertools.pairwise(errors):
        assert higher <= lower + CONVERGED * weight.norm()
    assert errors[0] <= weight.norm() * (1 + 1e-9)


@settings(max_examples=40)
@given(filters(), st.integers(1, 3), st.floats(1e-3, 1e3), st.booleans(), SEEDS)
def test_scale_and_order_of_filters_change_nothing_else(weight, rank, scale, negative, seed):
    order = torch.randperm(len(weight), generator=generator(seed))
    factor = -scale if negative else scale
    expected = reconstruct(decompose_filters(weight, rank))
    found = reconstruct(decompose_filters(factor * weight[order], rank))
    torch.testing.assert_close(found, factor * expected[order], rtol=1e-5, atol=1e-5 * abs(factor))


@st.composite
def layers(draw):
    """A random CP layer and an input that it takes."""
    side = st.integers(1, 3)
    kernel = (draw(side), draw(side))
    layer = CPConv2d(
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
        kernel,
        rank=draw(st.integers(1, 4)),
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        padding=(draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1))),
        bias=draw(st.booleans()),
    )
    seed = generator(draw(SEEDS))
    for parameter in layer.parameters():
        parameter.data.normal_(generator=seed)
    size = (draw(st.integers(kernel[0], 9)), draw(st.integers(kernel[1], 9)))
    return layer.eval(), torch.randn(draw(st.integers(1, 2)), layer.in_channels, *size, generator=seed)


@given(layers())
@torch.no_grad()
def test_forms_of_any_layer_equal_the_papers_stack(drawn):
    layer, x = drawn
    expected = separable(layer, x)
    for form in ("depthwise", "dense"):
        layer.form = form
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4 * (1 + expected.abs().max().item()))


@given(st.integers(1, 12), st.integers(1, 12), SEEDS, st.floats(0, 1))
def test_a_mask_survives_its_run_lengths(height, width, seed, threshold):
    mask = torch.rand(1, 1, height, width, generator=generator(seed))
    mask[mask > threshold] = 0
    output = {
        "boxes": torch.tensor([[0.0, 0, width, height]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.5]),
        "masks": mask,
    }
    [result] = to_results(1, output, Categories(("__background__", "any"), (0, 1)), "segm")
    assert np.array_equal(rle.decode(result["segmentation"]).astype(bool), (mask[0, 0] > 0.5).numpy())
