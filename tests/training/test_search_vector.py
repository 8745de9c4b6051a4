import dataclasses

import numpy as np
import pytest
import torch

from amdim_training import search_vector
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import ShapeError
from amdim_training.search_vector import (
    SEARCH_POWER,
    SHRINKAGE,
    SPREAD_FLOOR,
    encode_for_search,
    fit_search_vector,
    fit_to_pairs,
    scales_and_search,
    search_features,
    search_widths,
)
from amdim_training.views import VIEWS
from amdim_training.whitening import Covariance

NORMALIZATION = VIEWS["stl10"].normalization


@pytest.fixture(scope="module")
def encoder() -> AmdimEncoder:
    torch.manual_seed(0)
    made = AmdimEncoder(EncoderConfig(32, 4, 16, 1)).eval()
    for parameter in made.parameters():  # second convolutions begin at zero
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def pictures(count: int, *, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (count, 3, 4, 4), generator=generator).float()
    planes = torch.nn.functional.interpolate(coarse, side, mode="bilinear")
    return planes.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def of(rows: torch.Tensor) -> Covariance:
    summed = Covariance(rows.shape[1])
    summed.add(rows)
    return summed


@pytest.mark.parametrize("size", [32, 64, 128])
def test_features_are_scales_means_spreads_and_layouts(size: int) -> None:
    torch.manual_seed(0)
    encoder = AmdimEncoder(EncoderConfig(size, 4, 32, 2)).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        given = search_features(encoder, images)
        scales = scales_and_search(encoder, images).scales
        taps, features = encoder.activations(images), encoder(images)
    parts = given.split(search_widths(encoder.config), dim=1)

    assert (taps[14].shape[2:], taps[30].shape[2:]) == ((14, 14), (30, 30))
    torch.testing.assert_close(parts[0], features.f1)
    torch.testing.assert_close(parts[1], features.f5.flatten(2).mean(2))
    for part, grid in ((parts[2], 14), (parts[3], 7)):
        wanted = np.sqrt(taps[grid].double().numpy().var(axis=(2, 3)) + SPREAD_FLOOR)
        np.testing.assert_allclose(part.numpy(), wanted, rtol=1e-5)
    for part, grid, tile in ((parts[4], 14, 7), (parts[5], 30, 10)):
        side = grid // tile
        split = taps[grid].double().numpy().reshape(2, -1, side, tile, side, tile)
        wanted = split.mean(axis=(3, 5)).reshape(2, -1)
        np.testing.assert_allclose(part.numpy(), wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scales[:, : 2 * 32], torch.cat(parts[:2], dim=1))
    torch.testing.assert_close(scales[:, 2 * 32 :], features.f7.flatten(2).mean(2))


def test_even_picture_has_the_floors_spread(encoder: AmdimEncoder) -> None:
    even = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    features = encode_for_search(encoder, even, NORMALIZATION).search
    spreads = torch.cat(features.split(search_widths(encoder.config), dim=1)[2:4], dim=1)
    torch.testing.assert_close(
        spreads, torch.full_like(spreads, SPREAD_FLOOR**0.5), rtol=1e-3, atol=0
    )


def test_fit_equals_its_definition_in_numpy() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(400, 7)) @ rng.normal(size=(7, 7)) + 2.0).astype(np.float32)
    apart = (rng.normal(size=(300, 7)) @ rng.normal(size=(7, 7))).astype(np.float32)
    fitted = fit_to_pairs(
        torch.from_numpy(features), of(torch.from_numpy(apart)), (3, 4), 5, weights=(1.0, 0.5)
    )

    wide = features.astype(np.float64)
    covariance = np.cov(wide.T)
    deviations = [np.sqrt(np.trace(covariance[s, s])) for s in (slice(0, 3), slice(3, 7))]
    deviations[1] /= 0.5
    scaled = (wide - wide.mean(0)) / np.repeat(deviations, (3, 4))
    within = np.cov((apart.astype(np.float64) / np.repeat(deviations, (3, 4))).T)
    within += SHRINKAGE * np.trace(within) / 7 * np.eye(7)
    variances, axes = np.linalg.eigh(within)
    white = scaled @ (axes / np.sqrt(variances)) @ axes.T
    variances, axes = np.linalg.eigh(np.cov(white.T))
    variances, axes = variances[::-1][:5], axes[:, ::-1][:, :5]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(5)])
    floor = 1e-4 * np.trace(np.cov(white.T)) / 7
    expected = white @ axes / (variances + floor) ** (SEARCH_POWER / 2)
    given = fitted.apply(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(given, expected, atol=1e-3 * np.abs(expected).max())


def test_wide_parts_are_reduced_to_their_strongest_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    # 3 directions carry nearly all of the 9 columns' variance
    carried = torch.randn(500, 3, generator=generator) @ torch.randn(3, 9, generator=generator)
    features = torch.cat(
        [
            carried + 1e-3 * torch.randn(500, 9, generator=generator),
            torch.randn(500, 2, generator=generator),
        ],
        dim=1,
    )
    apart = of(0.1 * torch.randn(400, 11, generator=generator))
    whole = fit_to_pairs(features, apart, (9, 2), 4).apply(features)
    monkeypatch.setattr(search_vector, "PART_LIMIT", 3)
    reduced = fit_to_pairs(features, apart, (9, 2), 4)
    assert reduced.projection.shape == (4, 11)
    found, wanted = (torch.nn.functional.normalize(v) for v in (reduced.apply(features), whole))
    torch.testing.assert_close(found @ found.T, wanted @ wanted.T, atol=0.05, rtol=0)
    # all that is left of two parts is five axes
    assert fit_to_pairs(features, apart, (9, 2), 9).projection.shape == (5, 11)


def test_projection_is_what_files_hold() -> None:
    fitted = fit_to_pairs(torch.randn(50, 6), of(torch.randn(50, 6)), (6,), 4)
    assert torch.equal(fitted.projection.half().float(), fitted.projection)


def test_projection_of_tiny_features_is_finite() -> None:
    tiny = 1e-7 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    fitted = fit_to_pairs(tiny, of(0.1 * tiny), (6,), 4)
    assert fitted.projection.abs().max() > 65_504  # more than float16 holds
    assert torch.isfinite(fitted.apply(tiny)).all()


def test_what_tells_views_apart_counts_less() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 4, generator=generator)
    apart = 0.1 * torch.randn(2000, 4, generator=generator)
    apart[:, 0] *= 20  # the first direction is as good as drawn for each view
    fitted = fit_to_pairs(features, of(apart), (4,), 4, power=0.0)

    reach = fitted.projection.norm(dim=0)  # how far a step along each feature moves the vector
    assert reach[0] < 0.5 * reach[1:].min()


def test_same_pictures_give_the_same_fit_that_separates_them(encoder: AmdimEncoder) -> None:
    pixels = pictures(60)
    first = fit_search_vector(encoder, pixels, NORMALIZATION, 8, pairs=40)
    second = fit_search_vector(encoder, pixels, NORMALIZATION, 8, pairs=40)
    assert torch.equal(first.projection, second.projection)
    assert torch.equal(first.mean, second.mean)
    assert first.projection.shape == (8, sum(search_widths(encoder.config)))

    features = encode_for_search(encoder, pixels, NORMALIZATION).search
    given = fit_search_vector(encoder, pixels, NORMALIZATION, 8, features=features, pairs=40)
    assert torch.equal(given.projection, first.projection)
    assert torch.isfinite(first.apply(features)).all()


def test_the_encoders_own_normalisation_is_used(encoder: AmdimEncoder) -> None:
    other = dataclasses.replace(NORMALIZATION, mean=(0.1, 0.1, 0.1))
    pixels = pictures(30)
    ours, theirs = (fit_search_vector(encoder, pixels, n, 4) for n in (NORMALIZATION, other))
    assert not torch.allclose(ours.projection, theirs.projection)


def test_too_few_pictures_and_wrong_widths_are_refused(encoder: AmdimEncoder) -> None:
    with pytest.raises(ShapeError, match="more than 8 images"):
        fit_search_vector(encoder, pictures(8), NORMALIZATION, 8)
    with pytest.raises(ShapeError, match="not 6 features"):
        fit_to_pairs(torch.randn(20, 6), of(torch.randn(20, 6)), (3, 2), 4)
