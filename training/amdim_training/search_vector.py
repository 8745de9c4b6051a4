"""The search vector: what of an encoder goes into it, and the projection fitted to pairs of views.

AMDIM's three scales say what a picture shows; how much the trunk's maps vary over it says how it
is made: texture, grain, colour contrast. Of both, what two views of one picture share is kept and
what tells them apart is shrunk, before the strongest axes are taken. Knows no files. Which recipe
makes the best search vector was measured (benchmarks/search_vector.py).

Source: whitening learned from matching pairs, Mikolajczyk and Matas (ICCV 2007) and Radenovic,
Tolias and Chum (arXiv:1711.02512, 3.5); here the pairs are views, so nothing is labelled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import ShapeError
from amdim_training.views import VIEWS, Normalization, ViewsConfig, draw_pair
from amdim_training.whitening import Covariance, Whitening, strongest_axes

SEARCH_VIEWS: ViewsConfig = dataclasses.replace(
    VIEWS["stl10"],
    brightness=0.3,
    contrast=0.3,
    saturation=0.2,
    hue=0.03,
    gray_probability=0.0,
)
"""What a search looks past: another framing, another light. Not another colour: unlike the
encoder's training, which greys and turns hues, so that colour is no easy way to tell views."""

SHRINKAGE = 0.3
"""How far views' differences are taken to be alike in all directions, 0 to 1 and above: a share of
their mean variance, added to every direction's."""
SEARCH_POWER = 0.5
"""How far the search vector's components are brought to equal variance: 0 not at all, 1 fully."""
PAIR_LIMIT = 8_000
"""Pairs of views that a fit draws at most."""
SPREAD_FLOOR = 1e-4
"""Variance added to every spread, so that of an even picture it is this and not rounding."""

_SEED = 7
_TINY = 1e-12


class SearchFeatures(NamedTuple):
    """What a search vector is made of; the columns of (N, F) features, in this order.

    Attributes:
        f1: (N, D).
        mean5: (N, D), the mean of f5 over its grid.
        mean7: (N, D), the mean of f7.
        spread14: (N, C14), standard deviations over the trunk's 14x14 map.
        spread7: (N, C7), standard deviations over the trunk's 7x7 map.
    """

    f1: Tensor
    mean5: Tensor
    mean7: Tensor
    spread14: Tensor
    spread7: Tensor


def search_widths(config: EncoderConfig) -> tuple[int, ...]:
    """Returns how many columns each of `SearchFeatures` has."""
    dim, trunk = config.embed_dim, config.trunk_width
    return dim, dim, dim, trunk // 2, trunk


def search_features(encoder: AmdimEncoder, images: Tensor) -> Tensor:
    """Returns (N, F): `SearchFeatures` of (N, 3, S, S) normalised images, side by side."""
    taps = encoder.activations(images)
    features = encoder.features(taps)
    means = features.f5.mean(dim=(2, 3)), features.f7.mean(dim=(2, 3))
    return torch.cat([features.f1, *means, spread(taps[14]), spread(taps[7])], dim=1)


def spread(maps: Tensor) -> Tensor:
    """Returns each channel's standard deviation over a map, (N, C) of (N, C, h, w)."""
    variance = maps.float().var(dim=(2, 3), correction=0)
    return torch.sqrt(variance + SPREAD_FLOOR)


@torch.inference_mode()
def encode_for_search(
    encoder: AmdimEncoder, pixels: Tensor, normalization: Normalization, *, batch: int = 64
) -> Tensor:
    """Returns the features of pictures as they are served.

    Args:
        encoder: In evaluation mode.
        pixels: (N, S, S, 3) uint8 on any device.
        normalization: The encoder's.
        batch: Images a forward pass.

    Returns:
        (N, F) float32 on the CPU, `SearchFeatures` side by side.
    """
    device = next(encoder.parameters()).device
    parts = []
    for chunk in pixels.split(batch):
        # (n, S, S, 3) -> (n, 3, S, S)
        planes = chunk.to(device).permute(0, 3, 1, 2).float() / 255.0
        planes = normalization.apply(planes).contiguous(memory_format=torch.channels_last)
        parts.append(search_features(encoder, planes).cpu())
    return torch.cat(parts)


def fit_search_vector(
    encoder: AmdimEncoder,
    pixels: Tensor,
    normalization: Normalization,
    components: int,
    *,
    features: Tensor | None = None,
    pairs: int = PAIR_LIMIT,
    batch: int = 64,
) -> Whitening:
    """Fits the search vector on unlabelled pictures; the same pictures give the same fit.

    Args:
        encoder: In evaluation mode.
        pixels: (N, S, S, 3) uint8.
        normalization: The encoder's.
        components: E; fewer where the features are fewer.
        features: (N, F) of `encode_for_search`, where they are there already.
        pairs: Pictures that views are drawn of at most, evenly from all.
        batch: Images a forward pass.

    Raises:
        ShapeError: There are no more pictures than components.
    """
    if features is None:
        features = encode_for_search(encoder, pixels, normalization, batch=batch)
    widths = search_widths(encoder.config)
    difference = Covariance(sum(widths))
    rows = torch.linspace(0, len(pixels) - 1, min(pairs, len(pixels))).long()
    for chunk in _differences(encoder, pixels[rows], normalization, batch):
        difference.add(chunk)
    return fit_to_pairs(features, difference, widths, components)


def fit_to_pairs(
    features: Tensor,
    difference: Covariance,
    widths: tuple[int, ...],
    components: int,
    *,
    shrinkage: float = SHRINKAGE,
    power: float = SEARCH_POWER,
) -> Whitening:
    """Fits a projection that shrinks what tells views apart and keeps the rest's strongest axes.

    In float64: parts are scaled to equal total variance; the features are whitened by the
    (shrunk) covariance of views' differences; of what then varies over pictures, the strongest
    axes are kept and brought nearer to equal variance.

    Args:
        features: (N, F), more rows than components.
        difference: Covariance of the features of one view less those of the other, (F, F).
        widths: Columns of each part, F in all.
        components: E; capped at F.
        shrinkage: See `SHRINKAGE`.
        power: See `SEARCH_POWER`.

    Raises:
        ShapeError: There are no more rows than components, or widths are not F in all.
    """
    n, width = features.shape
    count = min(components, width)
    if n <= count:
        raise ShapeError(f"{count} components need more than {count} images, got {n}")
    if sum(widths) != width:
        raise ShapeError(f"parts of {widths} columns are not {width} features")
    total = Covariance(width)
    total.add(features)
    covariance = total.matrix()
    parts = covariance.diagonal().split(widths)
    scale = torch.cat([part.sum().clamp_min(_TINY).rsqrt().expand(len(part)) for part in parts])
    within = difference.matrix() * scale.unsqueeze(1) * scale
    mean_variance = within.diagonal().mean().clamp_min(_TINY)
    within += shrinkage * mean_variance * torch.eye(width, dtype=torch.float64)
    variances, axes = torch.linalg.eigh(within)
    whitener = (axes * variances.rsqrt()) @ axes.T * scale  # (F, F): rows are whitened features
    projection = strongest_axes(whitener @ covariance @ whitener.T, count, power) @ whitener
    return Whitening(total.mean().float(), projection.float().contiguous())


@torch.inference_mode()
def _differences(
    encoder: AmdimEncoder, pixels: Tensor, normalization: Normalization, batch: int
) -> Iterator[Tensor]:
    """Yields the features of one view less those of another, (n, F) on the CPU."""
    device = next(encoder.parameters()).device
    views = dataclasses.replace(SEARCH_VIEWS, normalization=normalization)
    generator = torch.Generator().manual_seed(_SEED)
    size = encoder.config.image_size
    for chunk in pixels.split(batch):
        first, second = (
            search_features(encoder, view.contiguous(memory_format=torch.channels_last)).cpu()
            for view in draw_pair(chunk.to(device), size, views, generator)
        )
        yield first - second
