import pytest
import torch

from amdim_training.errors import ShapeError
from amdim_training.whitening import Covariance, fit_whitening


def correlated(n: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(n, width, generator=generator) @ mix + 3.0


def test_whitened_features_are_uncorrelated_with_unit_variance() -> None:
    features = correlated(4000, 12)
    white = fit_whitening(features, 6, ridge=0.0).apply(features)
    torch.testing.assert_close(white.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(6), atol=1e-2, rtol=0)


def test_components_are_capped_and_signs_are_fixed() -> None:
    features = correlated(100, 5)
    whitening = fit_whitening(features, 50)
    assert whitening.projection.shape == (5, 5)
    largest = whitening.projection.abs().argmax(1, keepdim=True)
    assert (whitening.projection.gather(1, largest) > 0).all()


def test_a_direction_without_variance_is_not_blown_up() -> None:
    features = correlated(500, 4)
    features[:, 3] = features[:, 0]
    assert fit_whitening(features, 4).apply(features).abs().max() < 100


def test_parts_of_any_size_weigh_as_told() -> None:
    features = correlated(3000, 8)
    loud = features * torch.tensor([100.0] * 4 + [1.0] * 4)
    quiet = fit_whitening(features, 8, weights=(1.0, 1.0), ridge=0.0).apply(features)
    louder = fit_whitening(loud, 8, weights=(1.0, 1.0), ridge=0.0).apply(loud)
    torch.testing.assert_close(quiet, louder, atol=1e-3, rtol=1e-3)
    with pytest.raises(ShapeError, match="3 parts"):
        fit_whitening(features, 4, weights=(1.0, 1.0, 1.0))


def test_power_keeps_part_of_the_variances_order() -> None:
    features = correlated(3000, 6)
    plain = fit_whitening(features, 6, power=0.0).apply(features).var(0)
    half = fit_whitening(features, 6, power=0.5, ridge=0.0).apply(features).var(0)
    torch.testing.assert_close(half, plain.sqrt(), rtol=1e-3, atol=1e-3)
    assert (plain[:-1] >= plain[1:]).all()


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ShapeError, match="more than 5 images"):
        fit_whitening(correlated(5, 8), 5)


def test_covariance_of_parts_is_that_of_all() -> None:
    features = correlated(300, 4)
    summed = Covariance(4)
    for part in features.split(70):
        summed.add(part)
    torch.testing.assert_close(summed.mean().float(), features.mean(0))
    torch.testing.assert_close(summed.matrix().float(), torch.cov(features.T))
