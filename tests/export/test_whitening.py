from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from amdim_clients.images import Preprocess
from amdim_export.eager import encode_eager
from amdim_export.errors import ExportError
from amdim_export.fitting import fitted_recipe
from amdim_export.pictures import sample_pictures
from amdim_export.whitening import (
    EMBEDDING_FILE,
    RECIPE_VERSION,
    fit_recipe,
    load_recipe,
    save_recipe,
)
from amdim_training.whitening import SEARCH_POWER, SEARCH_WEIGHTS, pooled_features


def _features(checkpoint, pictures):
    images = sample_pictures([pictures], Preprocess.for_image_size(64), limit=99)
    return pooled_features(encode_eager(checkpoint, torch.from_numpy(images))).numpy()


def test_recipe_equals_whitening_in_numpy(make_checkpoint, pictures):
    checkpoint = make_checkpoint()
    recipe = fit_recipe(checkpoint, [pictures], components=10)
    features = _features(checkpoint, pictures).astype(np.float64)
    centered = features - features.mean(axis=0)
    scale = np.repeat(
        [
            weight / np.sqrt((part**2).sum() / (len(part) - 1))
            for weight, part in zip(SEARCH_WEIGHTS, np.split(centered, 3, axis=1), strict=True)
        ],
        centered.shape[1] // 3,
    )
    centered = centered * scale  # the three scales weigh as told
    covariance = centered.T @ centered / (len(features) - 1)
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = variances[::-1][:10], axes[:, ::-1][:, :10]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(10)])
    floor = 1e-4 * np.trace(covariance) / len(axes)
    expected = (centered @ axes) / (variances + floor) ** (SEARCH_POWER / 2)
    given = recipe.whitening.apply(torch.from_numpy(features).float()).numpy()
    assert np.abs(given - expected).max() < 1e-3 * np.abs(expected).max()


def test_same_pictures_give_the_same_recipe(make_checkpoint, pictures):
    checkpoint = make_checkpoint()
    first = fit_recipe(checkpoint, [pictures], components=8)
    second = fit_recipe(checkpoint, [pictures], components=8)
    assert torch.equal(first.whitening.projection, second.whitening.projection)
    assert torch.equal(first.whitening.mean, second.whitening.mean)


def test_components_are_capped_by_the_pictures(make_checkpoint, pictures):
    recipe = fit_recipe(make_checkpoint(), [pictures], components=256, limit=20)
    assert recipe.whitening.projection.shape == (19, 120)
    assert recipe.images == 20


def test_recipe_is_stored_and_read(make_checkpoint, pictures):
    checkpoint = make_checkpoint()
    assert load_recipe(checkpoint.path) is None
    recipe = fit_recipe(checkpoint, [pictures], components=8)
    save_recipe(checkpoint.path, recipe)
    read = load_recipe(checkpoint.path)
    assert read is not None
    assert torch.equal(read.whitening.projection, recipe.whitening.projection)
    assert (read.name, read.version, read.images) == (recipe.name, recipe.version, 60)
    assert not list(checkpoint.path.glob("*.partial"))


def test_fit_of_an_older_recipe_is_read_as_it_was_fitted(make_checkpoint, pictures):
    checkpoint = make_checkpoint()
    recipe = fit_recipe(checkpoint, [pictures], components=8)
    save_recipe(checkpoint.path, dataclasses.replace(recipe, name="an older one", version=3))
    read = load_recipe(checkpoint.path)
    assert read is not None and (read.name, read.version) == ("an older one", 3)
    assert torch.equal(read.whitening.projection, recipe.whitening.projection)

    save_recipe(checkpoint.path, dataclasses.replace(recipe, version=2))
    with pytest.raises(ExportError, match="recipe version 2"):
        load_recipe(checkpoint.path)


def test_fit_of_an_older_recipe_is_replaced_where_pictures_are_given(make_checkpoint, pictures):
    checkpoint = make_checkpoint()
    new = fitted_recipe(checkpoint, [pictures], components=8)
    assert new is not None and new.version == RECIPE_VERSION
    save_recipe(checkpoint.path, dataclasses.replace(new, version=3))

    kept = fitted_recipe(checkpoint, [], components=8)
    assert kept is not None and kept.version == 3
    again = fitted_recipe(checkpoint, [pictures], components=8)
    assert again is not None and again.version == RECIPE_VERSION


def test_broken_recipe_is_refused(make_checkpoint):
    folder = make_checkpoint().path
    (folder / EMBEDDING_FILE).write_bytes(b"not safetensors")
    with pytest.raises(ExportError, match="cannot be read"):
        load_recipe(folder)
