"""The encoder's layers rewritten for inference: norms and pixel statistics inside the weights.

What remains are convolutions, ReLUs, average pools and sums, with the same results up to rounding.
Knows no ONNX: plain torch modules in evaluation mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amdim_training.encoder import LocalHead, ResidualUnit, Stem
from amdim_training.search_vector import SPREAD_FLOOR


def affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns the (C,) float64 scale and shift that a batch norm is in evaluation mode."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None, "a norm without statistics cannot be folded"
    scale = norm.weight.double() / torch.sqrt(var.double() + norm.eps)
    return scale, norm.bias.double() - mean.double() * scale


def convolution(
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int, ...] = 0,
    padding_mode: str = "zeros",
    dilation: int = 1,
) -> nn.Conv2d:
    """Returns a convolution with the given float64 weights, rounded to float32 once."""
    out, c_in, height, width = weight.shape
    conv = nn.Conv2d(
        c_in,
        out,
        (height, width),
        stride,  # type: ignore[arg-type]
        padding,  # type: ignore[arg-type]
        dilation,
        bias=bias is not None,
        padding_mode=padding_mode,  # type: ignore[arg-type]
    )
    conv.weight.data = weight.float()
    if bias is not None:
        assert conv.bias is not None
        conv.bias.data = bias.float()
    return conv


class FusedStem(nn.Module):
    """A stem that takes pixels 0..255: normalisation is affine, so it moves into the weights.

    Exact also where the 128 px stem reflects its borders, since reflected pixels are normalised
    like any others.
    """

    def __init__(self, stem: Stem, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        conv = stem.conv
        assert conv.bias is not None
        weight = conv.weight.double()
        centre = torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1)
        spread = torch.tensor(std, dtype=torch.float64).view(1, 3, 1, 1)
        self.conv = convolution(
            weight / (spread * 255.0),
            conv.bias.double() - (weight * (centre / spread)).sum(dim=(1, 2, 3)),
            stride=conv.stride,
            padding=conv.padding,
            padding_mode=conv.padding_mode,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) pixels 0..255, float32 -> (N, C, h, w)."""
        return F.relu(self.conv(x))


class FusedUnit(nn.Module):
    """A residual unit and the batch norm behind it, if any, without batch norms.

    Where the unit widens, its second convolution is split: the channels that meet the shortcut,
    and those that would meet added zeros. Then no zeros are made and each half is one fused
    kernel (measured 5 % faster in ONNX Runtime than padding the shortcut; width 32, batch 16).
    """

    shortcut_scale: Tensor | None

    def __init__(self, unit: ResidualUnit, norm: nn.BatchNorm2d | None = None) -> None:
        super().__init__()
        self.kernel, self.stride = unit.kernel, unit.stride
        first, second = unit.conv1.weight.double(), unit.conv2.weight.double()
        bias: Tensor | None = None
        if unit.bn1 is not None:
            scale, bias = affine_of(unit.bn1)
            first = first * scale.view(-1, 1, 1, 1)
        self.conv1 = convolution(first, bias, stride=unit.stride)
        kept = unit.conv1.in_channels
        shift: Tensor | None = None
        carried_scale: Tensor | None = None
        if norm is not None:
            scale, shift = affine_of(norm)
            second = second * scale.view(-1, 1, 1, 1)
            carried_scale = scale[:kept].float().view(1, -1, 1, 1)
        self.register_buffer("shortcut_scale", carried_scale)
        self.carried = convolution(second[:kept], None if shift is None else shift[:kept])
        self.fresh = (
            convolution(second[kept:], None if shift is None else shift[kept:])
            if len(second) > kept
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C_out, h, w)."""
        hidden = F.relu(self.conv1(x))
        shortcut = x if self.kernel == 1 else F.avg_pool2d(x, self.kernel, self.stride)
        if self.shortcut_scale is not None:
            shortcut = shortcut * self.shortcut_scale
        out: Tensor = self.carried(hidden) + shortcut
        return out if self.fresh is None else torch.cat([out, self.fresh(hidden)], dim=1)


class FusedHead(nn.Module):
    """A local head without batch norms, and the mean of its vectors over a window of its grid.

    What follows the ReLU is affine, so the mean is taken before it: the search vector then needs
    the two convolutions at one position instead of d x d. An engine that is asked for nothing
    else leaves the local vectors out.

    Attributes:
        grid: d, the side of one window's grid: 5 or 7.
    """

    def __init__(self, head: LocalHead, grid: int) -> None:
        super().__init__()
        self.grid = grid
        first, bias = head.conv1.weight.double(), None
        if head.bn_hidden is not None:
            scale, bias = affine_of(head.bn_hidden)
            first = first * scale.view(-1, 1, 1, 1)
        self.conv1 = convolution(first, bias)
        scale, shift = affine_of(head.bn_out)
        column = scale.view(-1, 1, 1, 1)
        assert head.shortcut.bias is not None
        self.conv2 = convolution(head.conv2.weight.double() * column, None)
        self.shortcut = convolution(
            head.shortcut.weight.double() * column, head.shortcut.bias.double() * scale + shift
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h+d-1, w+d-1) -> the local vectors (N, D, h+d-1, w+d-1), means (N, D, h, w)."""
        hidden = F.relu(self.conv1(x))
        local: Tensor = self.conv2(hidden) + self.shortcut(x)
        means = window_means(hidden, self.grid), window_means(x, self.grid)
        return local, self.conv2(means[0]) + self.shortcut(means[1])


def window_means(x: Tensor, side: int) -> Tensor:
    """Returns means over windows of `side` positions a side, (N, C, H-side+1, W-side+1)."""
    return F.avg_pool2d(x, side, stride=1)


class MapSpread(nn.Module):
    """Each channel's standard deviation over a map (`search_vector.spread`)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, d, d) -> (N, C, 1, 1) float32."""
        x = x.float()  # squares leave what float16 can hold
        # pooled, which engines do in their convolutions' own layout, not reduced
        centered = x - F.avg_pool2d(x, x.shape[2:])
        return torch.sqrt(F.avg_pool2d(centered * centered, x.shape[2:]) + SPREAD_FLOOR)


class WindowSpread(nn.Module):
    """Each channel's standard deviation over every window of a map.

    Args:
        side: Positions of a window.
        stride: Positions from one window to the next.
    """

    def __init__(self, side: int, stride: int) -> None:
        super().__init__()
        self.side, self.stride = side, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, h, w) float32."""
        x = x.float()
        # a variance does not depend on where zero lies: near the values, squares cancel less
        x = x - x.mean(dim=(2, 3), keepdim=True)
        mean = F.avg_pool2d(x, self.side, self.stride)
        return deviation(F.avg_pool2d(x * x, self.side, self.stride), mean)


class MapLayout(nn.Module):
    """Each channel's means over square tiles of a map (`search_vector.layout`).

    Args:
        tile: Positions of a tile's side.
    """

    def __init__(self, tile: int) -> None:
        super().__init__()
        self.tile = tile

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, d, d) -> (N, C, d/tile, d/tile) float32."""
        return F.avg_pool2d(x, self.tile).float()


class WindowLayout(nn.Module):
    """Means over every tile that some window of a larger picture has.

    Only those that windows have: tiles lie `tile` positions apart in a window and windows `stride`
    apart, so all lie at multiples of what divides both.

    Args:
        tile: Positions of a tile's side.
        stride: Positions from one window to the next.
    """

    def __init__(self, tile: int, stride: int) -> None:
        super().__init__()
        self.tile, self.stride = tile, stride
        self.step = math.gcd(tile, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, h', w') float32, what `tile_convolution` takes."""
        return F.avg_pool2d(x, self.tile, self.step).float()


def tile_convolution(weight: Tensor, layout: nn.Module, grid: int) -> nn.Conv2d:
    """Returns the layer that applies a projection's columns to the tiles of each window.

    Args:
        weight: (E, C (grid/tile)^2), columns as `search_vector.layout` orders them.
        layout: The `WindowLayout` that it follows.
        grid: Positions of a window's side.
    """
    assert isinstance(layout, WindowLayout), "only windows' tiles lie apart"
    side = grid // layout.tile
    return convolution(
        weight.reshape(len(weight), -1, side, side),
        None,
        stride=layout.stride // layout.step,
        dilation=layout.tile // layout.step,
    )


def deviation(square: Tensor, mean: Tensor) -> Tensor:
    """Returns the standard deviation of what has this mean square and this mean."""
    return torch.sqrt(F.relu(square - mean * mean) + SPREAD_FLOOR)
