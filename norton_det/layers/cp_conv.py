"""Holds a convolution as CP factors.

The layer of NORTON (Pham, Zniyed, Nguyen, IEEE TNNLS 2024): K filters of C channels and a kernel (kh, kw),
each a sum of R outer products (`norton_det.ops.cp`). The paper runs it as three convolutions; two are enough,
because the two depthwise ones of a component have an outer product as their common kernel.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from norton_det.ops.cp import decompose_filters
from norton_det.ops.factors import CPFactors, reconstruct

Form = Literal["depthwise", "dense"]
FORMS: tuple[Form, ...] = ("depthwise", "dense")


class CPConv2d(nn.Module):
    """A 2-D convolution whose filters are CP factors of rank R; its input and output are those of `nn.Conv2d`.

    Parameters: channel (R, K, C), vertical (R, K, kh), horizontal (R, K, kw), bias (K,) or None. Components
    come first, so that (R*K, C, 1, 1) is a view and channel r*K + k is component r of filter k, as in the
    published checkpoints.

    The form says how the layer runs, never what it computes, and may be changed at any time:

    - "depthwise": 1x1 to R*K channels, one (kh, kw) depthwise convolution, sum over the R components;
    - "dense": one convolution with the reconstructed (K, C, kh, kw) weight.

    Args:
        in_channels: C.
        out_channels: K.
        kernel_size: (kh, kw), or one number for both; this and the arguments not listed here are `nn.Conv2d`'s.
        rank: number of components R.
        padding: in pixels.
        form: see above.

    Raises:
        ValueError: for a rank below 1, an unknown form or a padding that is not in pixels.

    Examples:
        >>> layer = CPConv2d.from_conv(nn.Conv2d(64, 64, 3, padding=1, bias=False), rank=1)
        >>> sum(p.numel() for p in layer.parameters())  # 64 * (64 + 3 + 3)
        4480
    """

    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        rank: int,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        form: Form = "depthwise",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.rank = rank
        self.stride = _pair("stride", stride)
        self.padding = _pair("padding", padding)
        self.dilation = _pair("dilation", dilation)
        self.form: Form = form
        height, width = self.kernel_size
        self.channel = nn.Parameter(torch.empty(rank, out_channels, in_channels, device=device, dtype=dtype))
        self.vertical = nn.Parameter(torch.empty(rank, out_channels, height, device=device, dtype=dtype))
        self.horizontal = nn.Parameter(torch.empty(rank, out_channels, width, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw random factors whose filters have the variance of `kaiming_normal_` (fan_out, ReLU)."""
        # A weight is a sum of R products of three independent entries of variance s^2: its variance is
        # R * s^6, and shall be 2 / (K * kh * kw).
        height, width = self.kernel_size
        variance = 2 / (self.out_channels * height * width)
        for factor in (self.channel, self.vertical, self.horizontal):
            nn.init.normal_(factor, std=(variance / self.rank) ** (1 / 6))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, rank: int, form: Form = "depthwise") -> Self:
        """Decompose a convolution by `decompose_filters`; the bias is copied.

        Raises:
            ValueError: where the convolution is grouped or its padding is not zeros, in pixels, and as
                `decompose_filters` does.
        """
        if conv.groups != 1:
            raise ValueError(f"only a convolution with groups=1 can be decomposed, got groups={conv.groups}")
        if conv.padding_mode != "zeros":
            raise ValueError(f"only padding_mode='zeros' can be decomposed, got {conv.padding_mode!r}")
        return cls.from_factors(
            decompose_filters(conv.weight, rank),
            stride=_pair("stride", conv.stride),
            padding=_pair("padding", conv.padding),
            dilation=_pair("dilation", conv.dilation),
            bias=conv.bias,
            form=form,
        )

    @classmethod
    def from_factors(
        cls,
        factors: CPFactors,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        bias: Tensor | None = None,
        form: Form = "depthwise",
    ) -> Self:
        """Build the layer from copies of its factors and its bias (K,), in their dtype, on their device."""
        filters, channels, rank = factors.channel.shape
        layer: Self = skip_init(
            cls,
            channels,
            filters,
            (factors.vertical.shape[1], factors.horizontal.shape[1]),
            rank,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=bias is not None,
            form=form,
            device=factors.channel.device,
            dtype=factors.channel.dtype,
        )
        with torch.no_grad():
            for parameter, factor in zip(layer.factors.modes, factors.modes, strict=True):
                parameter.copy_(factor)
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
        return layer

    @property
    def factors(self) -> CPFactors:
        """Return the factors as views of the parameters: (K, C, R), (K, kh, R), (K, kw, R)."""
        return CPFactors(*(p.permute(1, 2, 0) for p in (self.channel, self.vertical, self.horizontal)))

    @property
    def weight(self) -> Tensor:
        """Return the reconstructed filters (K, C, kh, kw), as `nn.Conv2d` holds them; differentiable."""
        return reconstruct(self.factors)

    def to_conv(self) -> nn.Conv2d:
        """Return the dense convolution that computes the same."""
        conv: nn.Conv2d = skip_init(
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            bias=self.bias is not None,
            device=self.channel.device,
            dtype=self.channel.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(self.weight)
            if conv.bias is not None and self.bias is not None:
                conv.bias.copy_(self.bias)
        return conv.train(self.training)

    def select_filters(self, indices: Tensor) -> None:
        """Keep only the filters at `indices` (long), in place: a slice of K. `requires_grad` is kept."""
        for name, parameter in list(self.named_parameters()):
            _replace(self, name, parameter[indices] if name == "bias" else parameter[:, indices])
        self.out_channels = len(indices)

    def select_inputs(self, indices: Tensor) -> None:
        """Read only the input channels at `indices` (long), in place: a slice of C. `requires_grad` is kept."""
        _replace(self, "channel", self.channel[:, :, indices])
        self.in_channels = len(indices)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (N, C, H, W) to (N, K, H', W'); channels_last stays channels_last."""
        if self.form == "dense":
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        channels = self.rank * self.out_channels
        x = F.conv2d(x, self.channel.view(channels, self.in_channels, 1, 1))
        geometry = (self.stride, self.padding, self.dilation)
        return _sum_components(F.conv2d(x, *self._kernels(), *geometry, groups=channels), self.rank)

    def _kernels(self) -> tuple[Tensor, Tensor | None]:
        """Return the depthwise kernels (R*K, 1, kh, kw) and bias (R*K,)."""
        kernels = self.vertical[..., :, None] * self.horizontal[..., None, :]  # (R, K, kh, kw)
        # The bias belongs to the sum, so the first component carries it. (K,) to (R*K,)
        padding = (self.rank - 1) * self.out_channels
        return kernels.flatten(0, 1)[:, None], None if self.bias is None else F.pad(self.bias, (0, padding))

    def to_depthwise(self) -> DepthwiseCPConv2d:
        """Return the depthwise form with its kernels computed once, for inference."""
        return DepthwiseCPConv2d(self)

    def separable_macs(self, input_shape: torch.Size, output_shape: torch.Size) -> int:
        """Return the multiply-accumulates of the paper's three convolutions for (N, C, H, W) to (N, K, H', W').

        The 1x1 convolution works at (H, W). The (kh, 1) depthwise one, which carries the vertical stride, gives
        (H', W), the (1, kw) one (H', W').
        """
        count, _, height, width = input_shape
        new_height, new_width = output_shape[2:]
        kernel_height, kernel_width = self.kernel_size
        channel = self.in_channels * height * width
        vertical = kernel_height * new_height * width
        horizontal = kernel_width * new_height * new_width
        return count * self.rank * self.out_channels * (channel + vertical + horizontal)

    def extra_repr(self) -> str:
        """Describe the layer as `nn.Conv2d` does, with rank and form."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"bias={self.bias is not None}, form={self.form}"
        )


def _replace(layer: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter of a layer by a new one; it stays trainable or frozen as the old one was."""
    requires_grad = layer.get_parameter(name).requires_grad
    setattr(layer, name, nn.Parameter(value.detach().contiguous(), requires_grad))


def _pair(name: str, value: object) -> tuple[int, int]:
    """Return a pair of what `nn.Conv2d` takes as an int or a pair."""
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, int) for part in value):
        return value
    raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")


class DepthwiseCPConv2d(nn.Module):
    """A `CPConv2d` in its depthwise form for inference, whose kernels are multiplied out once."""

    def __init__(self, layer: CPConv2d) -> None:
        super().__init__()
        channels = layer.rank * layer.out_channels
        kernels, bias = layer._kernels()
        self.rank = layer.rank
        self.pointwise = nn.Conv2d(layer.in_channels, channels, 1, bias=False)
        self.pointwise.weight = nn.Parameter(layer.channel.detach().flatten(0, 1)[..., None, None].clone())
        self.spatial = nn.Conv2d(
            channels,
            channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            channels,
            bias is not None,
        )
        self.spatial.weight = nn.Parameter(kernels.detach().clone())
        if bias is not None:
            self.spatial.bias = nn.Parameter(bias.detach().clone())

    def depthwise(self, x: Tensor) -> Tensor:
        """Compute what follows the 1x1 convolution: (N, R*K, H, W) to (N, K, H', W')."""
        return _sum_components(self.spatial(x), self.rank)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (N, C, H, W) to (N, K, H', W')."""
        return self.depthwise(self.pointwise(x))


def in_form(layer: CPConv2d, form: Form) -> nn.Module:
    """Return a layer in a form, as it is deployed: a call has no factors left to multiply out."""
    return (layer.to_depthwise() if form == "depthwise" else layer.to_conv()).eval()


def _sum_components(x: Tensor, rank: int) -> Tensor:
    """Sum the components of (N, R*K, H, W), which follow one another, to (N, K, H, W)."""
    # Chunks rather than slices: the gradient is then one concatenation.
    first, *others = x.chunk(rank, dim=-3)
    if not others:
        return x
    total = first + others[0]
    for component in others[1:]:
        total += component  # an addition keeps nothing for its gradient, so it may work in place
    return total
