"""Rounding to eight bits inside a torch graph: with gradients to train by, and frozen to export.

Symmetric throughout (zero points are 0): weights signed with a scale for each output channel,
activations with one scale, unsigned where they cannot be negative. Knows no encoder.

Source: learned step sizes after Esser et al., "Learned Step Size Quantization"
(arXiv:1902.08153), sections 2.1 and 2.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIGNED = (-128, 127)
UNSIGNED = (0, 255)
_WEIGHTS = (-127, 127)  # symmetric even at its end, as runtimes that negate weights want it
_TINY = 1e-8
_CANDIDATES = torch.linspace(0.3, 1.0, 36)
"""Shares of the largest value that are tried as the end of a range."""


@torch.library.custom_op("amdim::round_activation", mutates_args=())
def round_activation(x: Tensor, scale: float, unsigned: bool) -> Tensor:
    """Returns QuantizeLinear and DequantizeLinear of `x`, as ONNX defines them."""
    low, high = UNSIGNED if unsigned else SIGNED
    return torch.clamp(torch.round(x / scale), low, high) * scale


@round_activation.register_fake
def _(x: Tensor, scale: float, unsigned: bool) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("amdim::restore_weight", mutates_args=())
def restore_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """Returns DequantizeLinear of an int8 weight (O, ...) by a scale (O,) of each row."""
    return weight.float() * scale.view(-1, *[1] * (weight.ndim - 1))


@restore_weight.register_fake
def _(weight: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(weight, dtype=torch.float32)


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to 256 levels; passes it through until it has seen a range.

    Attributes:
        log_scale: Of one step, learned in the logarithm so that its updates are relative.
        unsigned: Whether the levels are 0..255, for what cannot be negative.
        step: The size of one level for good, once it computes exactly what the file does.
    """

    zero: Tensor

    def __init__(self, *, unsigned: bool) -> None:
        super().__init__()
        self.unsigned = unsigned
        self.log_scale = nn.Parameter(torch.tensor([math.nan]))
        self.register_buffer("zero", torch.zeros(1))
        self.step: float | None = None
        self.seen: list[Tensor] | None = None

    def freeze(self) -> None:
        """Fixes the step."""
        self.step = float(self.log_scale.detach().exp())

    def observe(self) -> None:
        """Lets values through unrounded and keeps a sample of them, until `settle`."""
        self.seen = []

    def settle(self) -> None:
        """Takes the range of least squared error over what was seen."""
        assert self.seen, "nothing was observed"
        values = torch.cat(self.seen)
        low, high = UNSIGNED if self.unsigned else SIGNED
        scales = values.abs().max().clamp_min(_TINY) * _CANDIDATES / high
        errors = [
            ((values / scale).round().clamp(low, high) * scale - values).square().mean()
            for scale in scales
        ]
        self.log_scale.data = scales[torch.stack(errors).argmin()].log().reshape(1)
        self.seen = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` on its levels."""
        if self.seen is not None:
            flat = x.detach().flatten()
            self.seen.append(flat[:: max(1, flat.numel() // 65_536)].clone())
            return x
        if self.step is not None:
            rounded: Tensor = torch.ops.amdim.round_activation(x, self.step, self.unsigned)
            return rounded
        low, high = UNSIGNED if self.unsigned else SIGNED
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, self.log_scale.exp(), self.zero, low, high, 1.0 / math.sqrt(x.numel() * high)
        )


PIXEL_STEP = 1.0001
"""Of pixels 0..255 on 256 levels. At a step of exactly 1 OpenVINO 2026.4 takes the rounding for
nothing, which it is, and the convolution behind it for one in float."""


class PixelQuantizer(nn.Module):
    """Puts pixels on unsigned levels, which loses nothing but a ten thousandth of their size."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, 3, H, W) float32 whole numbers, each a little larger."""
        rounded: Tensor = torch.ops.amdim.round_activation(x, PIXEL_STEP, True)
        return rounded


class QuantizedConv(nn.Module):
    """A convolution whose weights are on 255 levels of their own for each output channel."""

    zero: Tensor
    weight_int8: Tensor
    weight_scale: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        rows = conv.weight.detach().flatten(1)
        if conv.bias is None:
            conv.bias = nn.Parameter(torch.zeros(len(rows)))
        self.log_scale = nn.Parameter(_best_scales(rows).log())
        self.register_buffer("zero", torch.zeros(len(rows)))
        self.frozen = False
        self.seen: list[Tensor] | None = None

    def observe(self) -> None:
        """Keeps the weights unrounded and notes what comes in, until `settle`."""
        self.seen = []

    def settle(self) -> None:
        """Takes what rounding the weights adds to the mean of each output off its bias.

        Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
        Correction" (arXiv:1906.04721), section 4.2; the means are measured here.
        """
        assert self.seen, "nothing was observed"
        mean = torch.stack(self.seen).mean(dim=0)
        lost = (self.conv.weight - self._rounded()).detach().sum(dim=(2, 3))
        assert self.conv.bias is not None
        self.conv.bias.data += lost @ mean
        self.seen = None

    def freeze(self) -> None:
        """Rounds the weights for good, to what the exported file holds."""
        scale = self.log_scale.detach().exp()
        column = scale.view(-1, 1, 1, 1)
        whole = torch.round(self.conv.weight.detach() / column).clamp(*_WEIGHTS)
        self.register_buffer("weight_int8", whole.to(torch.int8))
        self.register_buffer("weight_scale", scale)
        self.frozen = True

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C_out, h, w)."""
        out: Tensor = self.conv._conv_forward(x, self._weight(x), self.conv.bias)
        return out

    def product(self, x: Tensor) -> Tensor:
        """The same of (N, C, k, k), all that a k x k kernel sees, as one matrix product."""
        rows = F.linear(x.flatten(1), self._weight(x).flatten(1), self.conv.bias)
        return rows.reshape(*rows.shape, 1, 1)

    def _weight(self, x: Tensor) -> Tensor:
        if self.seen is not None:
            self.seen.append(x.detach().mean(dim=(0, 2, 3)))
            return self.conv.weight
        if self.frozen:
            kept: Tensor = torch.ops.amdim.restore_weight(self.weight_int8, self.weight_scale)
            return kept
        return self._rounded()

    def _rounded(self) -> Tensor:
        weight = self.conv.weight
        share = 1.0 / math.sqrt(weight.numel() * _WEIGHTS[1])
        return torch._fake_quantize_learnable_per_channel_affine(
            weight, self.log_scale.exp(), self.zero, 0, *_WEIGHTS, share
        )


class QuantizedPool(nn.Module):
    """Average pooling, written as a convolution of each channel alone whose weights are one level.

    It loses nothing, and engines have fast int8 kernels for it where they have slow ones for
    pools: 4 % of an int8 engine's time in OpenVINO, 25 % in ONNX Runtime.

    Args:
        channels: C.
        side: Positions of a window.
        stride: Positions from one window to the next.
    """

    weight_int8: Tensor
    weight_scale: Tensor

    def __init__(self, channels: int, side: int, stride: int) -> None:
        super().__init__()
        self.channels, self.side, self.stride = channels, side, stride
        self.frozen = False

    def freeze(self) -> None:
        """Makes it the convolution that the exported file holds."""
        ones = torch.ones((self.channels, 1, self.side, self.side), dtype=torch.int8)
        self.register_buffer("weight_int8", ones)
        self.register_buffer("weight_scale", torch.full((self.channels,), 1.0 / self.side**2))
        self.frozen = True

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, h, w)."""
        if not self.frozen:
            return F.avg_pool2d(x, self.side, self.stride)
        weight: Tensor = torch.ops.amdim.restore_weight(self.weight_int8, self.weight_scale)
        return F.conv2d(x, weight, stride=self.stride, groups=self.channels)


def _best_scales(rows: Tensor) -> Tensor:
    """Returns the step of least squared error of each row of (O, F)."""
    largest = rows.abs().amax(dim=1, keepdim=True).clamp_min(_TINY) / _WEIGHTS[1]
    scales = largest * _CANDIDATES  # (O, candidates)
    whole = (rows[:, None] / scales[:, :, None]).round().clamp(*_WEIGHTS)
    errors = (whole * scales[:, :, None] - rows[:, None]).square().sum(dim=2)
    return scales.gather(1, errors.argmin(dim=1, keepdim=True)).squeeze(1)
