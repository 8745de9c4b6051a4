"""Two random views of each image, made for a whole batch at once on the training device.

Crop, resize, translation and flip are one pair of matrices per image, built from PIL's own
resampling rule, so a batch costs two batched matrix products. Knows no files and no encoder.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from amdim_training.color import Jitter, color_jitter, luma
from amdim_training.config import Augmentation, DataConfig, ViewsName
from amdim_training.strong import apply_subpolicies, draw_subpolicies, lighting

_CROP_ATTEMPTS = 10  # torchvision's RandomResizedCrop gives up after as many


@dataclasses.dataclass(frozen=True, slots=True)
class Normalization:
    """Per-channel mean and standard deviation of pixels in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def apply(self, pixels: Tensor) -> Tensor:
        """Returns (N, 3, H, W) pixels in 0..1 as the encoder takes them."""
        mean = pixels.new_tensor(self.mean).view(1, 3, 1, 1)
        std = pixels.new_tensor(self.std).view(1, 3, 1, 1)
        return (pixels - mean) / std

    def undo(self, planes: Tensor) -> Tensor:
        """Returns pixels in 0..1 of (N, 3, H, W) that `apply` made."""
        mean = planes.new_tensor(self.mean).view(1, 3, 1, 1)
        std = planes.new_tensor(self.std).view(1, 3, 1, 1)
        return planes * std + mean


@dataclasses.dataclass(frozen=True, slots=True)
class ViewsConfig:
    """One augmentation pipeline.

    Source: SPEC.md 5.
    """

    normalization: Normalization
    max_shift: int = 0
    """Pixels of translation with mirror fill; 0 means a random resized crop instead."""
    shift_probability: float = 0.8
    scale: tuple[float, float] = (0.3, 1.0)
    """Share of the area a crop covers."""
    ratio: tuple[float, float] = (0.7, 1.4)
    """Width over height of a crop, log-uniform."""
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.2
    gray_probability: float = 0.25
    flip_probability: float = 0.5
    subpolicies: bool = False
    """Whether two random operations come before all else (`strong`)."""
    lighting: float = 0.0
    """Standard deviation of colour noise after all else, in ImageNet's eigenvalues."""


_IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

VIEWS: dict[ViewsName, ViewsConfig] = {
    "cifar": ViewsConfig(
        Normalization(
            (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
        ),
        max_shift=4,
    ),
    "stl10": ViewsConfig(Normalization((0.43, 0.42, 0.39), (0.27, 0.26, 0.27))),
    "imagenet": ViewsConfig(_IMAGENET, hue=0.1),
    "strong": ViewsConfig(
        _IMAGENET,
        scale=(0.2, 0.9),
        jitter_probability=1.0,
        hue=0.1,
        subpolicies=True,
        lighting=0.1,
    ),
}


PIPELINE_OF: dict[int, ViewsName] = {32: "cifar", 64: "stl10", 128: "imagenet"}
"""The pipeline the reference trains each image size with; its files do not say."""


def views_config(data: DataConfig) -> ViewsConfig:
    """Returns the pipeline that a run's `[data]` asks for.

    A step left out by `without` stays out whatever the other keys say; a view without a crop is
    whole.
    """
    none: dict[Augmentation, dict[str, Any]] = {
        "jitter": {"jitter_probability": 0.0},
        "gray": {"gray_probability": 0.0},
        "crop": {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "shift_probability": 0.0},
        "flip": {"flip_probability": 0.0},
    }
    named = VIEWS[data.views]
    least, most = data.crop_scale or named.scale
    config = dataclasses.replace(
        named,
        scale=(least, most),
        brightness=named.brightness * data.color_strength,
        contrast=named.contrast * data.color_strength,
        saturation=named.saturation * data.color_strength,
        hue=named.hue * data.color_strength,
    )
    for step in data.without:
        config = dataclasses.replace(config, **none[step])
    return config


def draw_pair(
    images: Tensor, size: int, config: ViewsConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns two normalised views of each image; the flip is drawn once for both.

    Args:
        images: (N, P, P, 3) uint8.
        size: S, the side of the views.
        config: The pipeline.
        generator: A CPU generator: the same one gives the same views on every device.

    Returns:
        Two (N, 3, S, S) float32 tensors on the images' device.
    """
    flip = _uniform(len(images), generator) < config.flip_probability
    # (N, P, P, 3) -> (N, 3, P, P)
    planes = images.permute(0, 3, 1, 2).float().div_(255.0)
    first = _draw_view(planes, size, config, flip, generator)
    second = _draw_view(planes, size, config, flip, generator)
    return first, second


def draw_view(images: Tensor, size: int, config: ViewsConfig, generator: torch.Generator) -> Tensor:
    """Returns one normalised view of each image, with a flip of its own; as `draw_pair`."""
    flip = _uniform(len(images), generator) < config.flip_probability
    planes = images.permute(0, 3, 1, 2).float().div_(255.0)  # (N, P, P, 3) -> (N, 3, P, P)
    return _draw_view(planes, size, config, flip, generator)


def _draw_view(
    planes: Tensor, size: int, config: ViewsConfig, flip: Tensor, generator: torch.Generator
) -> Tensor:
    n, side = len(planes), planes.shape[-1]
    if config.subpolicies:
        planes = apply_subpolicies(planes, draw_subpolicies(n, generator))
    if config.max_shift:
        shifts = _draw_shifts(n, config, generator)
        rows = translation_matrices(shifts[:, 1], side)
        columns = translation_matrices(shifts[:, 0], side)
    else:
        top, left, height, width = draw_crops(n, side, config, generator)
        rows = resize_matrices(top, height, side, size)
        columns = resize_matrices(left, width, side, size)
    columns = torch.where(flip.view(n, 1, 1), columns.flip(2), columns)
    view = resample(planes, rows.to(planes.device), columns.to(planes.device)).clamp_(0.0, 1.0)
    view = color_jitter(view, draw_jitter(n, config, generator))
    gray = _uniform(n, generator) < config.gray_probability
    index = gray.nonzero().squeeze(1).to(view.device)
    view[index] = luma(view[index]).expand(-1, 3, -1, -1)
    if config.lighting:
        view = lighting(view, config.lighting, generator)
    return config.normalization.apply(view)


def resample(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Applies one linear map per image and axis.

    Args:
        planes: (N, 3, P, P) float32.
        rows: (N, S, P), each output row as weights of input rows.
        columns: (N, S, P), the same for columns.

    Returns:
        (N, 3, S, S) float32.
    """
    n, channels, height, width = planes.shape
    size = rows.shape[1]
    # columns first, as PIL does: (N, 3P, P) @ (N, P, S)
    narrow = torch.bmm(planes.reshape(n, channels * height, width), columns.transpose(1, 2))
    # (N, 1, S, P) @ (N, 3, P, S)
    return torch.matmul(rows.unsqueeze(1), narrow.view(n, channels, height, size))


def resize_matrices(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Returns PIL's bicubic, antialiased resize of a crop as one matrix per image.

    Args:
        start: (N,) first input pixel of each crop.
        length: (N,) pixels of each crop, at least 1.
        side: P, the input's extent.
        size: S, the output's extent.

    Returns:
        (N, S, P) float32; rows sum to 1 and are zero outside the crop.

    Source: Pillow, src/libImaging/Resample.c, precompute_coeffs (a = -0.5).
    """
    scale = (length.float() / size).view(-1, 1, 1)
    stretch = scale.clamp(min=1.0)
    # the crop's own coordinates: output centers against input centers
    device = start.device
    at = torch.arange(size, dtype=torch.float32, device=device)
    centers = (at.view(1, -1, 1) + 0.5) * scale
    pixels = torch.arange(side, device=device).view(1, 1, -1) - start.view(-1, 1, 1)
    inside = (pixels >= 0) & (pixels < length.view(-1, 1, 1))
    x = ((pixels + 0.5 - centers) / stretch).abs_()
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = torch.where(x < 1.0, near, far).masked_fill_((x >= 2.0) | ~inside, 0.0)
    return weights / weights.sum(dim=2, keepdim=True)


def translation_matrices(shift: Tensor, side: int) -> Tensor:
    """Returns a translation with mirror fill (the border pixel not repeated) as matrices.

    Args:
        shift: (N,) pixels the content moves towards higher indices, |shift| < P.
        side: P.

    Returns:
        (N, P, P) float32, one 1 in each row.
    """
    source = (torch.arange(side, device=shift.device).view(1, -1) - shift.view(-1, 1)).abs()
    source = (side - 1) - ((side - 1) - source).abs()
    return torch.nn.functional.one_hot(source, side).float()


def draw_crops(
    n: int, side: int, config: ViewsConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws N crops of a P x P image: (N,) int64 tops, lefts, heights and widths.

    Source: torchvision's RandomResizedCrop: the first of ten draws that fits, else the largest
    centred crop within the ratio, which for a square is the whole image.
    """
    shape = (n, _CROP_ATTEMPTS)
    area = side * side * _uniform(shape, generator, *config.scale)
    log_ratio = _uniform(shape, generator, math.log(config.ratio[0]), math.log(config.ratio[1]))
    ratio = log_ratio.exp()
    widths = (area * ratio).sqrt().round().long()
    heights = (area / ratio).sqrt().round().long()
    fits = (widths >= 1) & (widths <= side) & (heights >= 1) & (heights <= side)
    first = fits.int().argmax(dim=1, keepdim=True)  # argmax gives the first of equals
    found = fits.any(dim=1)
    width = torch.where(found, widths.gather(1, first).squeeze(1), side)
    height = torch.where(found, heights.gather(1, first).squeeze(1), side)
    top = (_uniform(n, generator) * (side - height + 1)).long()
    left = (_uniform(n, generator) * (side - width + 1)).long()
    return top, left, height, width


def _draw_shifts(n: int, config: ViewsConfig, generator: torch.Generator) -> Tensor:
    """Draws (N, 2) translations (dx, dy), zero for those left in place."""
    bound = config.max_shift
    device = generator.device
    shifts = torch.randint(-bound, bound + 1, (n, 2), generator=generator, device=device)
    moved = _uniform(n, generator) < config.shift_probability
    return shifts * moved.unsqueeze(1)


def draw_jitter(n: int, config: ViewsConfig, generator: torch.Generator) -> Jitter:
    """Draws the four operations' order and strengths for each of N images."""
    order = _uniform((n, 4), generator).argsort(dim=1)
    apply = _uniform(n, generator) < config.jitter_probability
    strengths = (config.brightness, config.contrast, config.saturation, config.hue)
    strength = torch.tensor(strengths, device=generator.device)
    factors = (2.0 * _uniform((n, 4), generator) - 1.0) * strength
    factors[:, :3] += 1.0
    return Jitter(order.masked_fill(~apply.unsqueeze(1), -1), factors)


def _uniform(
    shape: int | tuple[int, ...],
    generator: torch.Generator,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    return drawn * (high - low) + low
