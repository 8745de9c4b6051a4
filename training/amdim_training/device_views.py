"""Two views of a batch drawn and made on the device, in fixed shapes and without a look back.

The pipelines of `views`, for a device that must never wait for the host: parameters come from a
generator on the device, and every picture goes through every operation, of which its own are
kept. On a CPU `views.draw_pair` is faster, since it applies only what was drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amdim_training.color import brightness, contrast, hue, luma, saturation
from amdim_training.errors import ConfigError
from amdim_training.views import ViewsConfig, draw_crops, resample, resize_matrices

_OPERATIONS = (brightness, contrast, saturation, hue)


class DeviceViews:
    """Draws view pairs of one pipeline on one device.

    Args:
        size: S, the side of the views.
        config: A pipeline of crops; shifts and sub-policies are for `views.draw_pair`.
        device: Where everything happens.

    Raises:
        ConfigError: The pipeline has steps of variable shape.
    """

    def __init__(self, size: int, config: ViewsConfig, device: torch.device) -> None:
        if config.max_shift or config.subpolicies or config.lighting:
            raise ConfigError("these views are for pipelines of crops and colours only")
        self.size, self.config = size, config
        self._make: Callable[..., Tensor] = self._render
        strengths = (config.brightness, config.contrast, config.saturation, config.hue)
        self._strength = torch.tensor(strengths, device=device)
        self._center = torch.tensor((1.0, 1.0, 1.0, 0.0), device=device)
        normal = config.normalization
        self._mean = torch.tensor(normal.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(normal.std, device=device).view(1, 3, 1, 1)

    def draw_pair(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns two normalised views of each image; the flip is drawn once for both.

        Args:
            images: (N, P, P, 3) uint8 on the device.
            generator: On the device.

        Returns:
            Two (N, 3, S, S) float32 tensors, channels last.
        """
        n, side = images.shape[:2]
        flip = self._uniform(n, generator) < self.config.flip_probability
        first = self._draw_view(n, side, flip, generator)
        second = self._draw_view(n, side, flip, generator)
        return self._make(images, *first), self._make(images, *second)

    def compile(self) -> None:
        """Has torch.compile build what touches pixels; drawing is a few small kernels."""
        self._make = torch.compile(self._make)

    def _draw_view(
        self, n: int, side: int, flip: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        top, left, height, width = draw_crops(n, side, self.config, generator)
        order = self._uniform((n, 4), generator).argsort(dim=1)
        left_alone = self._uniform(n, generator) >= self.config.jitter_probability
        order = order.masked_fill(left_alone.unsqueeze(1), -1)
        spread = 2.0 * self._uniform((n, 4), generator) - 1.0
        factors = self._center + spread * self._strength
        gray = self._uniform(n, generator) < self.config.gray_probability
        return flip, top, left, height, width, order, factors, gray

    def _render(
        self,
        images: Tensor,
        flip: Tensor,
        top: Tensor,
        left: Tensor,
        height: Tensor,
        width: Tensor,
        order: Tensor,
        factors: Tensor,
        gray: Tensor,
    ) -> Tensor:
        n, side = images.shape[:2]
        planes = images.permute(0, 3, 1, 2).float() / 255.0  # (N, 3, P, P)
        rows = resize_matrices(top, height, side, self.size)
        columns = resize_matrices(left, width, side, self.size)
        columns = torch.where(flip.view(n, 1, 1), columns.flip(2), columns)
        view = resample(planes, rows, columns).clamp(0.0, 1.0)
        view = jitter_in_turn(view, order, factors)
        view = torch.where(gray.view(n, 1, 1, 1), luma(view).expand_as(view), view)
        view = (view - self._mean) / self._std
        return view.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def _uniform(shape: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device)


def jitter_in_turn(images: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Applies the colour operations to every picture and keeps, place by place, the drawn one.

    Args:
        images: (N, 3, H, W) float32 in 0..1.
        order: (N, 4) int64, which operation comes when; -1 leaves a picture alone.
        factors: (N, 4) float32, by operation.

    Returns:
        What `color.color_jitter` makes of the same parameters.
    """
    by_operation = [factors[:, number].view(-1, 1, 1, 1) for number in range(4)]
    for place in range(4):
        drawn = order[:, place].view(-1, 1, 1, 1)
        kept = images
        for number, operation in enumerate(_OPERATIONS):
            kept = torch.where(drawn == number, operation(images, by_operation[number]), kept)
        images = kept
    return images
