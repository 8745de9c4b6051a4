"""PCA-whitening of features: what makes the search vector out of AMDIM's three scales.

Knows no encoder and no files: features in, a mean and a projection out. Which whitening makes the
best search vector was measured (benchmarks/search_vector.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from amdim_training.encoder import EncoderFeatures
from amdim_training.errors import ShapeError

SEARCH_WEIGHTS = (1.0, 1.0, 1.0)
"""What f1, mean f5 and mean f7 weigh before their common axes are sought."""
SEARCH_POWER = 0.75
"""How far the search vector's components are brought to equal variance: 0 not at all, 1 fully."""


@dataclasses.dataclass(frozen=True, slots=True)
class Whitening:
    """An affine map to uncorrelated components of equal, or more nearly equal, variance.

    Attributes:
        mean: (F,) float32.
        projection: (E, F) float32, rows by falling variance.
    """

    mean: Tensor
    projection: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """Returns (N, E) of (N, F), float32."""
        return (features - self.mean) @ self.projection.T


def pooled_features(features: EncoderFeatures) -> Tensor:
    """Returns (N, 3D): f1 beside the means of f5 and of f7 over their grids."""
    return torch.cat(
        [features.f1, features.f5.mean(dim=(2, 3)), features.f7.mean(dim=(2, 3))], dim=1
    )


def fit_search_vector(pooled: Tensor, components: int) -> Whitening:
    """Fits the search vector on (N, 3D) pooled features: scales weighed, whitened in part.

    Raises:
        ShapeError: There are no more rows than components.
    """
    return fit_whitening(pooled, components, power=SEARCH_POWER, weights=SEARCH_WEIGHTS)


def fit_whitening(
    features: Tensor,
    components: int,
    *,
    power: float = 1.0,
    weights: Sequence[float] = (),
    ridge: float = 1e-4,
) -> Whitening:
    """Fits PCA-whitening, in float64.

    Args:
        features: (N, F), more rows than components.
        components: E; capped at F.
        power: Components are divided by their standard deviation to this power.
        weights: One for each of F's equal parts, first scaled to that total standard deviation,
            so that none rules the axes by its size; none leaves the features as they are.
        ridge: Share of the mean variance added to every component's, so that directions the
            data hardly uses are not blown up into noise.

    Raises:
        ShapeError: There are no more rows than components, or as many parts do not divide F.
    """
    n, width = features.shape
    count = min(components, width)
    if n <= count:
        raise ShapeError(f"{count} components need more than {count} images, got {n}")
    if weights and width % len(weights):
        raise ShapeError(f"{len(weights)} parts do not divide {width} features")
    mean = features.double().mean(dim=0)
    covariance = torch.zeros(width, width, dtype=torch.float64)
    for chunk in features.split(8192):  # bounds the float64 copy
        centered = chunk.double() - mean
        covariance += centered.T @ centered
    covariance /= n - 1
    scale = torch.ones(width, dtype=torch.float64)
    if weights:
        parts = covariance.diagonal().view(len(weights), -1)
        wanted = torch.tensor(weights, dtype=torch.float64).unsqueeze(1)
        scale = (wanted * parts.sum(dim=1, keepdim=True).rsqrt()).expand_as(parts).reshape(width)
    covariance *= scale.unsqueeze(1) * scale
    variances, axes = torch.linalg.eigh(covariance)  # rising
    variances = variances.flip(0)[:count]
    axes = axes.flip(1)[:, :count]
    # an axis is defined up to its sign: make the largest weight positive
    largest = axes.abs().argmax(dim=0, keepdim=True)
    axes = axes * axes.gather(0, largest).sign()
    floor = ridge * covariance.diagonal().mean()
    projection = (axes / (variances + floor) ** (power / 2)).T * scale
    return Whitening(mean.float(), projection.float().contiguous())
