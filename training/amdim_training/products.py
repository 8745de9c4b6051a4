"""Convolutions as matrix products, where a CPU trains faster so: same numbers, fewer milliseconds.

The encoder pads nothing, so its last convolution sees all of its input at once and is one product;
oneDNN's backward pass takes five times as long for it. In bf16 small windows gain a third by
being laid out first. Measured with torch 2.13 on AVX512-BF16; GPUs and inference convolve as usual.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LARGEST_WINDOW = 3
"""A 4x4 window at stride 2 copies each pixel four times and loses."""
_NARROWEST_POINTWISE = 256
"""Channels below which oneDNN's 1x1 convolution is the faster one."""


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Returns `conv(x)` of an unpadded convolution, computed the fastest way known for training.

    Args:
        conv: Square window, no padding, any stride.
        x: (N, C, H, W); only channels_last tensors on a CPU that will have gradients are
            treated specially.
    """
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    height, width = x.shape[2:]
    if not _is_trained_on_cpu(x):
        return _plain(conv, x)
    if kernel == height == width:
        # (N, C, k, k) -> (N, k * k * C), then (N, O) -> (N, O, 1, 1)
        rows = x.permute(0, 2, 3, 1).flatten(1)
        return F.linear(rows, _columns(conv), conv.bias)[:, :, None, None]
    if not _is_bf16(x):
        return _plain(conv, x)
    if kernel == 1 and stride == 1 and min(conv.weight.shape[:2]) >= _NARROWEST_POINTWISE:
        return F.linear(x.permute(0, 2, 3, 1), _columns(conv), conv.bias).permute(0, 3, 1, 2)
    if 1 < kernel <= _LARGEST_WINDOW:
        windows = _windows(x.permute(0, 2, 3, 1), kernel, stride)
        return F.linear(windows, _columns(conv), conv.bias).permute(0, 3, 1, 2)
    return _plain(conv, x)


def _plain(conv: nn.Conv2d, x: Tensor) -> Tensor:
    convolved: Tensor = conv(x)
    return convolved


def _is_trained_on_cpu(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and torch.is_grad_enabled()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _is_bf16(x: Tensor) -> bool:
    """Whether a product of x is made in bf16: by its own type or by autocast."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == torch.bfloat16


def _columns(conv: nn.Conv2d) -> Tensor:
    """Returns the weight as (O, k * k * C): (O, C, k, k) kept in channels_last, so a view."""
    return conv.weight.permute(0, 2, 3, 1).flatten(1)


def _windows(pixels: Tensor, kernel: int, stride: int) -> Tensor:
    """Returns each window's pixels side by side: (N, H, W, C) -> (N, h, w, k * k * C)."""
    n, height, width, channels = pixels.shape
    h, w = ((side - kernel) // stride + 1 for side in (height, width))
    if kernel == stride and h * kernel == height and w * kernel == width:
        tiles = pixels.reshape(n, h, kernel, w, kernel, channels)
        return tiles.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1)
    shifted = [
        pixels[:, i : i + (h - 1) * stride + 1 : stride, j : j + (w - 1) * stride + 1 : stride]
        for i in range(kernel)
        for j in range(kernel)
    ]
    return torch.cat(shifted, dim=3)
