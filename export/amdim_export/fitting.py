"""Which search vector an export takes: the one fitted before, or one fitted anew.

A fit differs in its last bits from machine to machine, and with it the encoder's digest, which
indexes hold. So a fit on the same pictures of the same weights is kept and not repeated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from amdim_export.digests import encoder_digest
from amdim_export.errors import ExportError
from amdim_export.pictures import digest_of_sources
from amdim_export.whitening import (
    EMBEDDING_FILE,
    RECIPE_VERSION,
    SearchRecipe,
    fit_recipe,
    load_recipe,
    save_recipe,
)
from amdim_training.checkpoint import Checkpoint

Say = Callable[[str], None]


def fitted_recipe(
    checkpoint: Checkpoint,
    fit_on: Sequence[Path],
    *,
    components: int,
    refit: bool = False,
    say: Say = lambda _: None,
    note: Say = lambda _: None,
) -> SearchRecipe | None:
    """Returns a checkpoint's search vector; None where there is none and nothing to fit it on.

    A new fit replaces the one in the checkpoint's folder.

    Args:
        checkpoint: The trained encoder, in its folder.
        fit_on: Packs or folders; empty takes the fit that the checkpoint holds.
        components: Size of the search vector.
        refit: Fit again also where the same was fitted before.
        say: Told what takes time.
        note: Told in a sentence what was done.

    Raises:
        ExportError: The stored fit is of other weights, or nothing could be fitted.
    """
    weights = encoder_digest(checkpoint, None)
    place = checkpoint.path / EMBEDDING_FILE
    stored = _stored(checkpoint.path, may_be_broken=bool(fit_on))
    if not fit_on:
        if stored is not None and stored.encoder not in ("", weights):
            raise ExportError(
                f"{place} was fitted for other weights: give --fit-on pictures to fit it anew"
            )
        return stored
    source = digest_of_sources(fit_on)
    if stored is not None and not refit and _is_the_same(stored, weights, source, components):
        note(f"the search vector is the one fitted on these pictures before ({place})")
        return stored
    say("fitting the search vector")
    recipe = fit_recipe(checkpoint, fit_on, components=components)
    recipe = dataclasses.replace(recipe, encoder=weights, source=source, asked=components)
    save_recipe(checkpoint.path, recipe)
    if stored is None:
        note(f"the search vector was fitted on {recipe.images} pictures ({place})")
    else:
        note(
            f"the search vector was fitted anew on {recipe.images} pictures and replaces the one "
            f"in {place}: the encoder's digest is another, and indexes must be made again"
        )
    return recipe


def _is_the_same(stored: SearchRecipe, weights: str, source: str, components: int) -> bool:
    wanted = (weights, source, components, RECIPE_VERSION)
    return (stored.encoder, stored.source, stored.asked, stored.version) == wanted


def _stored(folder: Path, *, may_be_broken: bool) -> SearchRecipe | None:
    try:
        return load_recipe(folder)
    except ExportError:  # broken or of an older recipe, which a new fit replaces
        if may_be_broken:
            return None
        raise
