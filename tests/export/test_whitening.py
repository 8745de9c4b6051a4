from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from amdim_clients.images import Preprocess
from amdim_export.eager import reference_vectors
from amdim_export.errors import ExportError
from amdim_export.fitting import fitted_recipe
from amdim_export.names import EMBEDDING
from amdim_export.pictures import sample_pictures
from amdim_export.whitening import (
    EMBEDDING_FILE,
    RECIPE_VERSION,
    fit_recipe,
    load_recipe,
    save_recipe,
)
from amdim_training.features import TorchEncoder
from amdim_training.search_vector import search_widths


def test_recipe_is_the_fit_of_evaluation(make_checkpoint, pictures):
    checkpoint = make_checkpoint()
    recipe = fit_recipe(checkpoint, [pictures], components=10)
    images = sample_pictures([pictures], Preprocess.for_image_size(64), limit=99)
    evaluated = TorchEncoder(checkpoint.encoder, checkpoint.normalization)
    assert evaluated.fit(images, 10)
    expected = evaluated.encode(images).embedding
    given = reference_vectors(checkpoint, recipe.whitening, images, only=(EMBEDDING,))[EMBEDDING]
    assert expected is not None
    np.testing.assert_allclose(given, expected.numpy(), atol=1e-4 * np.abs(given).max())


def test_same_pictures_give_the_same_recipe(make_checkpoint, pictures):
    checkpoint = make_checkpoint()
    first = fit_recipe(checkpoint, [pictures], components=8)
    second = fit_recipe(checkpoint, [pictures], components=8)
    assert torch.equal(first.whitening.projection, second.whitening.projection)
    assert torch.equal(first.whitening.mean, second.whitening.mean)


def test_components_are_capped_by_the_pictures(make_checkpoint, pictures):
    checkpoint = make_checkpoint()
    recipe = fit_recipe(checkpoint, [pictures], components=256, limit=20)
    width = sum(search_widths(checkpoint.encoder.config))
    assert recipe.whitening.projection.shape == (19, width)
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


def test_fit_of_another_recipe_is_refused(make_checkpoint, pictures):
    checkpoint = make_checkpoint()
    recipe = fit_recipe(checkpoint, [pictures], components=8)
    save_recipe(checkpoint.path, dataclasses.replace(recipe, version=4))
    with pytest.raises(ExportError, match="recipe version 4, not 6: give --fit-on"):
        load_recipe(checkpoint.path)


def test_fit_of_an_older_recipe_is_replaced_where_pictures_are_given(make_checkpoint, pictures):
    checkpoint = make_checkpoint()
    new = fitted_recipe(checkpoint, [pictures], components=8)
    assert new is not None and new.version == RECIPE_VERSION
    save_recipe(checkpoint.path, dataclasses.replace(new, version=3))

    with pytest.raises(ExportError, match="recipe version 3"):
        fitted_recipe(checkpoint, [], components=8)
    again = fitted_recipe(checkpoint, [pictures], components=8)
    assert again is not None and again.version == RECIPE_VERSION


def test_broken_recipe_is_refused(make_checkpoint):
    folder = make_checkpoint().path
    (folder / EMBEDDING_FILE).write_bytes(b"not safetensors")
    with pytest.raises(ExportError, match="cannot be read"):
        load_recipe(folder)
