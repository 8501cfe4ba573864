"""Decomposes whole convolutions, the alternatives that NORTON's decomposition of each filter is compared with.

A weight (K, C, kh, kw) becomes a short sequence of convolutions, of rank R or of ranks r1, r2:

- layer-wise CP: 1x1 C -> R, (kh, 1) depthwise, (1, kw) depthwise, 1x1 R -> K. Lebedev et al., "Speeding-up
  convolutional neural networks using fine-tuned CP-decomposition", ICLR 2015.
- layer-wise Tucker-2: 1x1 C -> r1, (kh, kw) r1 -> r2, 1x1 r2 -> K. Kim et al., "Compression of deep
  convolutional neural networks for fast and low power mobile applications", ICLR 2016.
- matrix SVD of the reshape to (K, C*kh*kw): (kh, kw) C -> R, 1x1 R -> K. Zhang et al., "Accelerating very deep
  convolutional networks for classification and detection", TPAMI 2016 (here without their response data).
- spatial SVD of the reshape to (C*kh, K*kw): (kh, 1) C -> R, (1, kw) R -> K. Jaderberg et al., "Speeding up
  convolutional neural networks with low rank expansions", BMVC 2014 (scheme 2, in closed form).

CP and Tucker are computed by TensorLy on NumPy arrays, the SVDs by torch in float64.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor, nn
from torch.nn.utils import skip_init

Shape = tuple[int, int, int, int]
"""The shape (K, C, kh, kw) of a weight."""
_TOLERANCE = 1e-4
"""ALS ends when a sweep lowers ||W - W'|| / ||W|| by less than this."""


def layer_cp(conv: nn.Conv2d, rank: int, *, sweeps: int = 50, seed: int = 0) -> nn.Sequential:
    """Return 1x1 (R, C), (kh, 1) and (1, kw) depthwise, 1x1 (K, R), by CP of the fourth-order weight.

    The vertical depthwise convolution carries the vertical stride and padding, the horizontal one the others.

    Args:
        conv: an ordinary convolution without bias.
        rank: number of components R; unlike a matrix's rank it may exceed every dimension of the weight.
        sweeps: the most sweeps of alternating least squares (with line search, from the singular vectors).
        seed: seeds the starting columns beyond those singular vectors.

    Time and memory: TensorLy forms Khatri-Rao products of up to K*C*max(kh, kw) * R entries in every sweep: with
    512 filters of 512 channels a sweep takes seconds at R = 257, and four times as long at R = 1030.

    Raises:
        ValueError: a rank below 1; a convolution that is grouped, has a bias, or pads with anything but zeros, in
            pixels.
    """
    _check(conv, rank)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Trying to compute SVD", UserWarning)  # R exceeds kh and kw: expected
        weights, factors = parafac(
            conv.weight.detach().float().cpu().numpy(),
            rank,
            n_iter_max=sweeps,
            tol=_TOLERANCE,
            linesearch=True,
            random_state=seed,
        )
    output, channel, vertical, horizontal = (torch.from_numpy(factor) for factor in factors)  # (n, R) each
    return nn.Sequential(
        _conv(conv, channel.mT[:, :, None, None]),  # from (C, R) to (R, C, 1, 1)
        _conv(conv, vertical.mT[:, None, :, None], spatial="v", groups=rank),  # from (kh, R) to (R, 1, kh, 1)
        _conv(conv, horizontal.mT[:, None, None, :], spatial="h", groups=rank),  # from (kw, R) to (R, 1, 1, kw)
        _conv(conv, (output * torch.from_numpy(weights))[:, :, None, None]),  # from (K, R) to (K, R, 1, 1)
    )


def layer_tucker2(conv: nn.Conv2d, ranks: tuple[int, int]) -> nn.Sequential:
    """Return 1x1 (r1, C), (kh, kw) (r2, r1), 1x1 (K, r2), by Tucker of the two channel modes.

    Args:
        conv: an ordinary convolution without bias.
        ranks: r1, at most C, and r2, at most K; exact where both are reached.

    Raises:
        ValueError: as for `layer_cp`, and for ranks above C and K.
    """
    inputs, outputs = ranks
    _check(conv, inputs, conv.in_channels)
    _check(conv, outputs, conv.out_channels)
    (core, factors), _ = partial_tucker(
        conv.weight.detach().double().cpu().numpy(), rank=[outputs, inputs], modes=[0, 1], tol=_TOLERANCE
    )
    output, channel = (torch.from_numpy(factor) for factor in factors)  # (K, r2), (C, r1)
    return nn.Sequential(
        _conv(conv, channel.mT[:, :, None, None]),
        _conv(conv, torch.from_numpy(core), spatial="vh"),
        _conv(conv, output[:, :, None, None]),
    )


def matrix_svd(conv: nn.Conv2d, rank: int) -> nn.Sequential:
    """Return (kh, kw) (R, C) and 1x1 (K, R), the best approximation of rank R; exact from min(K, C*kh*kw) on.

    Raises ValueError as `layer_cp` does, and for a rank above min(K, C*kh*kw).
    """
    filters, *filter_shape = conv.weight.shape
    _check(conv, rank, min(filters, conv.weight[0].numel()))
    left, right = _svd(conv.weight.flatten(1), rank)  # (K, R), (R, C*kh*kw)
    return nn.Sequential(
        _conv(conv, right.view(rank, *filter_shape), spatial="vh"),
        _conv(conv, left[:, :, None, None]),
    )


def spatial_svd(conv: nn.Conv2d, rank: int) -> nn.Sequential:
    """Return (kh, 1) (R, C) and (1, kw) (K, R), the best approximation of rank R; exact from min(C*kh, K*kw) on.

    Raises ValueError as `layer_cp` does, and for a rank above min(C*kh, K*kw).
    """
    filters, channels, height, width = conv.weight.shape
    _check(conv, rank, min(channels * height, filters * width))
    matrix = conv.weight.permute(1, 2, 0, 3).reshape(channels * height, filters * width)
    left, right = _svd(matrix, rank)  # (C*kh, R), (R, K*kw)
    return nn.Sequential(
        _conv(conv, left.mT.reshape(rank, channels, height, 1), spatial="v"),
        _conv(conv, right.view(rank, filters, 1, width).transpose(0, 1), spatial="h"),
    )


def composed_weight(layers: nn.Sequential) -> Tensor:
    """Return the weight (K, C, kh, kw), float64, of the one convolution that computes the same as `layers`.

    Two convolutions in a row equal one whose kernels are the full convolution of theirs, summed over the channels
    between them. Along each axis only the convolution that extends along it may have a stride.
    """
    first, *others = (conv for conv in layers if isinstance(conv, nn.Conv2d))
    weight = first.weight.detach().double().transpose(0, 1)  # (C, M, h, w): a batch of M-channel images
    for conv in others:
        kernel = conv.weight.detach().double().flip(2, 3)
        padding = (kernel.shape[2] - 1, kernel.shape[3] - 1)
        weight = F.conv2d(weight, kernel, padding=padding, groups=conv.groups)
    return weight.transpose(0, 1)


@dataclass(frozen=True)
class Alternative:
    """A decomposition set by one number from 1 to `highest(shape)`, which is a rank or stands for several.

    `ranks` gives the ranks that the number stands for, `parameters` their count of parameters, `decompose` the
    layers.
    """

    decompose: Callable[[nn.Conv2d, int], nn.Sequential]
    parameters: Callable[[Shape, int], int]
    highest: Callable[[Shape], int]
    ranks: Callable[[Shape, int], tuple[int, ...]] = lambda shape, rank: (rank,)

    def nearest_rank(self, shape: Shape, parameters: int) -> int:
        """Return the rank whose number of parameters is nearest to `parameters`, the lower one of two."""
        return min(range(1, self.highest(shape) + 1), key=lambda r: abs(self.parameters(shape, r) - parameters))


def tucker_ranks(shape: Shape, rank: int) -> tuple[int, int]:
    """Return r1 and r2 in the ratio of C to K; the larger one is `rank`."""
    filters, channels, _, _ = shape
    largest = max(filters, channels)
    return max(1, round(rank * channels / largest)), max(1, round(rank * filters / largest))


def _tucker_parameters(shape: Shape, rank: int) -> int:
    filters, channels, height, width = shape
    inputs, outputs = tucker_ranks(shape, rank)
    return channels * inputs + height * width * inputs * outputs + outputs * filters


ALTERNATIVES = {
    "layer-wise CP": Alternative(
        decompose=layer_cp,
        parameters=lambda shape, rank: rank * sum(shape),
        # Any tensor is a sum of as many components as it has vectors along its longest mode.
        highest=lambda shape: torch.Size(shape).numel() // max(shape),
    ),
    "layer-wise Tucker-2": Alternative(
        decompose=lambda conv, rank: layer_tucker2(conv, tucker_ranks(_shape(conv), rank)),
        parameters=_tucker_parameters,
        highest=lambda shape: max(shape[:2]),
        ranks=tucker_ranks,
    ),
    "matrix SVD": Alternative(
        decompose=matrix_svd,
        parameters=lambda shape, rank: rank * (shape[0] + shape[1] * shape[2] * shape[3]),
        highest=lambda shape: min(shape[0], shape[1] * shape[2] * shape[3]),
    ),
    "spatial SVD": Alternative(
        decompose=spatial_svd,
        parameters=lambda shape, rank: rank * (shape[1] * shape[2] + shape[0] * shape[3]),
        highest=lambda shape: min(shape[1] * shape[2], shape[0] * shape[3]),
    ),
}
"""The decompositions that NORTON's filter-wise CP is compared with, by name."""


def _shape(conv: nn.Conv2d) -> Shape:
    filters, channels, height, width = conv.weight.shape
    return filters, channels, height, width


def _svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors (m, R) and (R, n) of the best rank-R approximation of (m, n), the scale shared evenly."""
    left, values, right = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _conv(conv: nn.Conv2d, weight: Tensor, spatial: str = "", groups: int = 1) -> nn.Conv2d:
    """Return a convolution with `weight`, on the device and in the dtype of `conv`.

    It takes the stride, padding and dilation of `conv` along the axes in `spatial`: v, h, both or none.
    """
    along = ["v" in spatial, "h" in spatial]

    def taken(values: tuple[int, ...], default: int) -> tuple[int, ...]:
        return tuple(value if has else default for value, has in zip(values, along, strict=True))

    part: nn.Conv2d = skip_init(
        nn.Conv2d,
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=taken(conv.stride, 1),
        padding=taken(tuple(int(side) for side in conv.padding), 0),
        dilation=taken(conv.dilation, 1),
        groups=groups,
        bias=False,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        part.weight.copy_(weight)
    return part.train(conv.training)


def _check(conv: nn.Conv2d, rank: int, highest: int | None = None) -> None:
    if conv.groups != 1 or conv.bias is not None:
        raise ValueError(f"expected a convolution with groups=1 and without bias, got {conv}")
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError(f"expected padding with zeros, in pixels, got {conv}")
    if rank < 1 or (highest is not None and rank > highest):
        raise ValueError(f"rank must be at least 1{f' and at most {highest}' if highest else ''}, got {rank}")
