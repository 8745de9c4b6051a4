"""The search vector: what of an encoder goes into it, and the projection fitted to pairs of views.

AMDIM's global vector and the mean of its 5x5 vectors say what a picture shows; how much the
trunk's maps vary over it says how it is made: texture, grain, contrast; and its earlier maps,
averaged over a coarse grid, say what lies where. Of all that, what two views of one picture share
is kept and what tells them apart is shrunk, before the strongest axes are taken. Knows no files.
Which recipe makes the best search vector was measured (benchmarks/search_vector.py).

Source: whitening learned from matching pairs, Mikolajczyk and Matas (ICCV 2007) and Radenovic,
Tolias and Chum (arXiv:1711.02512, 3.5); here the pairs are views, so nothing is labelled.
Averages over a grid: Lazebnik, Schmid and Ponce, "Beyond Bags of Features" (CVPR 2006).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

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
MIRRORED = 0.25
"""Share of pairs whose views mirror each other, so that a mirrored picture is little further."""

SHRINKAGE = 1.0
"""How far views' differences are taken to be alike in all directions, 0 to 1 and above: a share of
their mean variance, added to every direction's."""
SEARCH_POWER = 0.5
"""How far the search vector's components are brought to equal variance: 0 not at all, 1 fully."""
PAIR_LIMIT = 8_000
"""Pairs of views that a fit draws at most."""
PART_LIMIT = 1024
"""Axes that a part of the features has at most when a fit weighs them all against each other:
what wide encoders have more is first reduced part by part, lest the fit take hours."""
TILE30, TILE14 = 10, 7
"""Sides of the tiles that layouts average over: 3x3 of them on the 30x30 map, 2x2 on the 14x14."""
PART_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 0.7, 0.7)
"""Standard deviations that `SearchFeatures`' parts are scaled to: both layouts weigh as one. More
of them finds more of Caltech-101's centred objects and less of what lies anywhere in a region."""
SPREAD_FLOOR = 1e-4
"""Variance added to every spread, so that of an even picture it is this and not rounding."""

_SEED = 7
_TINY = 1e-12


class SearchFeatures(NamedTuple):
    """What a search vector is made of; the columns of (N, F) features, in this order.

    Attributes:
        f1: (N, D).
        mean5: (N, D), the mean of f5 over its grid.
        spread14: (N, C14), standard deviations over the trunk's 14x14 map.
        spread7: (N, C7), standard deviations over the trunk's 7x7 map.
        layout14: (N, 4 C14), means over the tiles of the 14x14 map, each channel's four together.
        layout30: (N, 9 C30), means over the tiles of the 30x30 map.
    """

    f1: Tensor
    mean5: Tensor
    spread14: Tensor
    spread7: Tensor
    layout14: Tensor
    layout30: Tensor


class ScalesAndSearch(NamedTuple):
    """What pictures are scored by, float32 on the CPU.

    Attributes:
        scales: (N, 3D): f1, the mean of f5 and the mean of f7.
        search: (N, F): `SearchFeatures`.
    """

    scales: Tensor
    search: Tensor


def search_widths(config: EncoderConfig) -> tuple[int, ...]:
    """Returns how many columns each of `SearchFeatures` has."""
    dim, trunk = config.embed_dim, config.trunk_width
    tiles14, tiles30 = (14 // TILE14) ** 2, (30 // TILE30) ** 2
    return dim, dim, trunk // 2, trunk, tiles14 * (trunk // 2), tiles30 * (trunk // 4)


def search_features(encoder: AmdimEncoder, images: Tensor) -> Tensor:
    """Returns (N, F): `SearchFeatures` of (N, 3, S, S) normalised images, side by side."""
    return scales_and_search(encoder, images).search


def scales_and_search(encoder: AmdimEncoder, images: Tensor) -> ScalesAndSearch:
    """Returns both of (N, 3, S, S) normalised images, where the encoder is."""
    taps = encoder.activations(images)
    f1, f5, f7 = encoder.features(taps)
    mean5, mean7 = f5.mean(dim=(2, 3)), f7.mean(dim=(2, 3))
    search = SearchFeatures(
        f1,
        mean5,
        spread(taps[14]),
        spread(taps[7]),
        layout(taps[14], TILE14),
        layout(taps[30], TILE30),
    )
    return ScalesAndSearch(torch.cat([f1, mean5, mean7], dim=1), torch.cat(search, dim=1))


def spread(maps: Tensor) -> Tensor:
    """Returns each channel's standard deviation over a map, (N, C) of (N, C, h, w)."""
    variance = maps.float().var(dim=(2, 3), correction=0)
    return torch.sqrt(variance + SPREAD_FLOOR)


def layout(maps: Tensor, tile: int) -> Tensor:
    """Returns each channel's means over square tiles, (N, C h/tile w/tile) of (N, C, h, w)."""
    return F.avg_pool2d(maps.float(), tile).flatten(1)


@torch.inference_mode()
def encode_for_search(
    encoder: AmdimEncoder, pixels: Tensor, normalization: Normalization, *, batch: int = 64
) -> ScalesAndSearch:
    """Returns what pictures are scored by, as they are served.

    Args:
        encoder: In evaluation mode.
        pixels: (N, S, S, 3) uint8 on any device.
        normalization: The encoder's.
        batch: Images a forward pass.
    """
    device = next(encoder.parameters()).device
    parts = []
    for chunk in pixels.split(batch):
        # (n, S, S, 3) -> (n, 3, S, S)
        planes = chunk.to(device).permute(0, 3, 1, 2).float() / 255.0
        planes = normalization.apply(planes).contiguous(memory_format=torch.channels_last)
        given = scales_and_search(encoder, planes)
        parts.append((given.scales.cpu(), given.search.cpu()))
    scales, search = zip(*parts, strict=True)
    return ScalesAndSearch(torch.cat(scales), torch.cat(search))


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
        features: (N, F), the search features of `encode_for_search`, where they are there already.
        pairs: Pictures that views are drawn of at most, evenly from all.
        batch: Images a forward pass.

    Raises:
        ShapeError: There are no more pictures than components.
    """
    if features is None:
        features = encode_for_search(encoder, pixels, normalization, batch=batch).search
    widths = search_widths(encoder.config)
    difference = Covariance(sum(widths))
    rows = torch.linspace(0, len(pixels) - 1, min(pairs, len(pixels))).long()
    for chunk in _differences(encoder, pixels[rows], normalization, batch):
        difference.add(chunk)
    return fit_to_pairs(features, difference, widths, components, weights=PART_WEIGHTS)


def fit_to_pairs(
    features: Tensor,
    difference: Covariance,
    widths: tuple[int, ...],
    components: int,
    *,
    weights: Sequence[float] = (),
    shrinkage: float = SHRINKAGE,
    power: float = SEARCH_POWER,
) -> Whitening:
    """Fits a projection that shrinks what tells views apart and keeps the rest's strongest axes.

    In float64: parts are scaled to equal total variance, or by weight; the features are whitened
    by the (shrunk) covariance of views' differences; of what then varies over pictures, the
    strongest axes are kept and brought nearer to equal variance.

    Args:
        features: (N, F), more rows than components.
        difference: Covariance of the features of one view less those of the other, (F, F).
        widths: Columns of each part, F in all.
        components: E; capped at F.
        weights: Standard deviation that each part is scaled to; none for equal ones.
        shrinkage: See `SHRINKAGE`.
        power: See `SEARCH_POWER`.

    Raises:
        ShapeError: There are no more rows than components, or widths are not F in all.
    """
    n, width = features.shape
    count = min(components, sum(min(width, PART_LIMIT) for width in widths))
    if sum(widths) != width:
        raise ShapeError(f"parts of {widths} columns are not {width} features")
    if n <= count:
        raise ShapeError(f"{count} components need more than {count} images, got {n}")
    total = Covariance(width)
    total.add(features)
    covariance = total.matrix()
    parts = covariance.diagonal().split(widths)
    scale = torch.cat(
        [
            (weight * part.sum().clamp_min(_TINY).rsqrt()).expand(len(part))
            for part, weight in zip(parts, weights or [1.0] * len(widths), strict=True)
        ]
    )
    within = difference.matrix() * scale.unsqueeze(1) * scale
    mean_variance = within.diagonal().mean().clamp_min(_TINY)
    basis = _strongest_of_each(covariance, widths)  # (F', F)
    within = basis @ within @ basis.T
    within += shrinkage * mean_variance * torch.eye(len(basis), dtype=torch.float64)
    variances, axes = torch.linalg.eigh(within)
    # (F', F): rows are whitened features
    whitener = (axes * variances.rsqrt()) @ axes.T @ basis * scale
    projection = strongest_axes(whitener @ covariance @ whitener.T, count, power) @ whitener
    # to the float16 values that files hold, so that storing it changes nothing
    rounded = projection.half().float()
    if not torch.isfinite(rounded).all():  # features too small for that: it is stored whole
        rounded = projection.float()
    return Whitening(total.mean().float(), rounded.contiguous())


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
        pair = draw_pair(chunk.to(device), size, views, generator)
        second = mirror_some(pair[1], MIRRORED, generator)
        ours, theirs = (
            search_features(encoder, view.contiguous(memory_format=torch.channels_last)).cpu()
            for view in (pair[0], second)
        )
        yield ours - theirs


def _strongest_of_each(covariance: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Returns (F', F): the features, of parts wider than `PART_LIMIT` their strongest axes."""
    blocks, start = [], 0
    for width in widths:
        if width <= PART_LIMIT:
            blocks.append(torch.eye(width, dtype=torch.float64))
        else:
            part = covariance[start : start + width, start : start + width]
            blocks.append(torch.linalg.eigh(part)[1].flip(1)[:, :PART_LIMIT].T)
        start += width
    basis: Tensor = torch.block_diag(*blocks)
    return basis


def mirror_some(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Returns (N, C, H, W) images, each turned left to right with a probability of `share`."""
    mirrored = torch.rand(len(images), generator=generator) < share
    return torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), images.flip(3), images)
