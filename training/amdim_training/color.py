"""Colour operations on a batch of pictures, each picture with a strength of its own.

PIL's ImageEnhance on float pixels, without its rounding. Knows nothing random and no pipeline.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as PIL's convert("L")


@dataclasses.dataclass(frozen=True, slots=True)
class Jitter:
    """Colour jitter parameters of N images.

    Attributes:
        order: (N, 4) int64, which of brightness 0, contrast 1, saturation 2, hue 3 comes when;
            -1 in all four places leaves an image alone.
        factors: (N, 4) float32, by operation: three factors around 1 and a hue shift in turns.
    """

    order: Tensor
    factors: Tensor


def color_jitter(images: Tensor, jitter: Jitter) -> Tensor:
    """Applies each image's four colour operations in its own order, in place.

    Args:
        images: (N, 3, H, W) float32 in 0..1.
        jitter: Orders and factors, on the CPU.

    Returns:
        `images`, in 0..1.
    """
    operations = (brightness, contrast, saturation, hue)
    for step in range(4):
        for number, operation in enumerate(operations):
            index = (jitter.order[:, step] == number).nonzero().squeeze(1)
            if len(index) == 0:
                continue
            factor = jitter.factors[index, number].to(images.device).view(-1, 1, 1, 1)
            index = index.to(images.device)
            images[index] = operation(images[index], factor)
    return images


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Returns (N, 3, H, W) in 0..1 times (N, 1, 1, 1) factors, as PIL's Brightness."""
    return (x * factor).clamp_(0.0, 1.0)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Returns pictures scaled around their mean luma, as PIL's Contrast."""
    mean = luma(x).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean.expand_as(x), x, factor).clamp_(0.0, 1.0)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Returns pictures scaled around their own luma, as PIL's Color."""
    return torch.lerp(luma(x).expand_as(x), x, factor).clamp_(0.0, 1.0)


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotates hue by a share of a full turn, value and saturation kept.

    In HSV a channel is value - chroma * clamp(min(k, 4 - k), 0, 1), k = (n + 6 hue) mod 6 with
    n = 5, 3, 1 for red, green and blue.
    """
    red, green, blue = x.unbind(dim=1)  # (N, H, W) each
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    per_chroma = chroma.clamp_min(1e-8).reciprocal_()
    sixth = torch.where(
        value == red,
        (green - blue) * per_chroma,
        torch.where(
            value == green, (blue - red) * per_chroma + 2.0, (red - green) * per_chroma + 4.0
        ),
    )
    sixth += 6.0 * turns.view(-1, 1, 1)
    turned = torch.empty_like(x)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        k = sixth + offset
        k -= 6.0 * torch.floor(k * (1.0 / 6.0))  # a float remainder costs ten times as much
        share = torch.minimum(k, 4.0 - k).clamp_(0.0, 1.0)
        torch.sub(value, chroma.mul(share), out=turned[:, channel])
    return turned


def luma(x: Tensor) -> Tensor:
    """Returns (N, 1, H, W) luma of (N, 3, H, W)."""
    red, green, blue = x.split(1, dim=1)
    gray: Tensor = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
    return gray
