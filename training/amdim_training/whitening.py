"""PCA-whitening of features: what a search vector and every baseline's is made by.

Knows no encoder and no files: features in, a mean and a projection out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from amdim_training.errors import ShapeError


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


class Covariance:
    """Mean and covariance of rows that come in parts, summed in float64.

    Args:
        width: F, columns of every part.
    """

    def __init__(self, width: int) -> None:
        self.rows = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Takes in (n, F)."""
        for chunk in rows.split(8192):  # bounds the float64 copy
            wide = chunk.double()
            self.rows += len(wide)
            self._sum += wide.sum(dim=0)
            self._products += wide.T @ wide

    def mean(self) -> Tensor:
        """Returns (F,) float64."""
        return self._sum / self.rows

    def matrix(self) -> Tensor:
        """Returns (F, F) float64; zero of fewer than two rows."""
        mean = self.mean()
        centered = self._products - self.rows * torch.outer(mean, mean)
        return centered / max(1, self.rows - 1)


def strongest_axes(covariance: Tensor, count: int, power: float, *, ridge: float = 1e-4) -> Tensor:
    """Returns (count, F): axes of most variance, divided by their standard deviation to a power.

    An axis is defined up to its sign: its largest weight is made positive.

    Args:
        covariance: (F, F) float64.
        count: How many, at most F.
        power: 0 leaves variances as they are, 1 makes them equal.
        ridge: Share of the mean variance added to every axis's, so that directions the data
            hardly uses are not blown up into noise.
    """
    variances, axes = torch.linalg.eigh(covariance)  # rising
    variances = variances.flip(0)[:count]
    axes = axes.flip(1)[:, :count]
    largest = axes.abs().argmax(dim=0, keepdim=True)
    axes = axes * axes.gather(0, largest).sign()
    floor = ridge * covariance.diagonal().mean()
    scaled: Tensor = axes / (variances + floor) ** (power / 2)
    return scaled.T


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
    total = Covariance(width)
    total.add(features)
    covariance = total.matrix()
    scale = torch.ones(width, dtype=torch.float64)
    if weights:
        parts = covariance.diagonal().view(len(weights), -1)
        wanted = torch.tensor(weights, dtype=torch.float64).unsqueeze(1)
        scale = (wanted * parts.sum(dim=1, keepdim=True).rsqrt()).expand_as(parts).reshape(width)
    covariance *= scale.unsqueeze(1) * scale
    projection = strongest_axes(covariance, count, power, ridge=ridge) * scale
    return Whitening(total.mean().float(), projection.float().contiguous())
