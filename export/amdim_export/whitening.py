"""The search vector's recipe, fitted on unlabelled pictures and kept beside the encoder's weights.

The mathematics are training's (evaluation fits the same way); here they are fitted on files,
given a name and a version, stored and read. Knows no ONNX.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from amdim_clients.images import Preprocess
from amdim_export.errors import ExportError
from amdim_export.pictures import sample_pictures
from amdim_training.checkpoint import Checkpoint
from amdim_training.search_vector import fit_search_vector
from amdim_training.whitening import Whitening

EMBEDDING_FILE = "embedding.safetensors"
RECIPE = (
    "f1, mean f5, spreads of the 14x14 and the 7x7 map, layouts of the 14x14 (2x2) and the 30x30 "
    "map (3x3), weighed 1, the layouts 0.7; whitened by what tells views of one picture apart, "
    "mirrored ones among them (shrunk 1), pca, whitened to the power 0.5"
)
RECIPE_VERSION = 6
FIT_LIMIT = 20_000
"""Pictures at most: a thousand dimensions need no more, and fitting stays within two minutes."""


@dataclasses.dataclass(frozen=True, slots=True)
class SearchRecipe:
    """A fitted whitening and where it came from.

    Attributes:
        whitening: mean (F,), projection (E, F), float32; F as in `search_widths`.
        name: What was computed, in words.
        version: Of the recipe's definition.
        images: How many pictures it was fitted on.
        source: Digest of the packs and folders that they are from; empty where not known.
        encoder: Digest of the weights it was fitted for; empty where not known.
        asked: How many components were asked for; fewer exist where pictures were few.
    """

    whitening: Whitening
    name: str = RECIPE
    version: int = RECIPE_VERSION
    images: int = 0
    source: str = ""
    encoder: str = ""
    asked: int = 0

    @property
    def description(self) -> str:
        """Returns what the search vector is, in words."""
        return f"{self.name}, on {self.images} pictures"


def fit_recipe(
    checkpoint: Checkpoint,
    sources: Sequence[Path],
    *,
    components: int,
    limit: int = FIT_LIMIT,
    progress: Callable[[int], None] | None = None,
) -> SearchRecipe:
    """Fits the search vector of an encoder; the same pictures give the same recipe.

    Args:
        checkpoint: The encoder.
        sources: Parquet packs (of one with a `split` column its train rows) and image folders.
        components: E wanted; fewer where F or the number of pictures is less.
        limit: Pictures at most, the first of a fixed shuffle.
        progress: Called with the number of pictures decoded so far.

    Raises:
        ExportError: Too few pictures could be read to fit anything on.
    """
    preprocess = Preprocess.for_image_size(checkpoint.encoder.config.image_size)
    pixels = torch.from_numpy(sample_pictures(sources, preprocess, limit=limit, progress=progress))
    if len(pixels) < 2:
        raise ExportError("one picture is too few to fit the search vector on")
    whitening = fit_search_vector(
        checkpoint.encoder, pixels, checkpoint.normalization, min(components, len(pixels) - 1)
    )
    return SearchRecipe(whitening, images=len(pixels))


def save_recipe(checkpoint_folder: Path, recipe: SearchRecipe) -> Path:
    """Stores a recipe in a checkpoint's folder, written aside and renamed.

    Raises:
        ExportError: The folder cannot be written.
    """
    path = checkpoint_folder / EMBEDDING_FILE
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    tensors = {
        "mean": recipe.whitening.mean.contiguous(),
        "projection": _at_half_width(recipe.whitening.projection),
    }
    notes = {
        "recipe": recipe.name,
        "version": str(recipe.version),
        "images": str(recipe.images),
        "source": recipe.source,
        "encoder": recipe.encoder,
        "asked": str(recipe.asked),
    }
    try:
        save_file(tensors, aside, metadata=notes)
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise ExportError(f"{path} could not be written: {error}") from error
    return path


def load_recipe(checkpoint_folder: Path) -> SearchRecipe | None:
    """Returns the recipe that a checkpoint's folder holds, None where it holds none.

    Raises:
        ExportError: The file is broken or of another version of the recipe.
    """
    path = checkpoint_folder / EMBEDDING_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            mean, projection = file.get_tensor("mean"), file.get_tensor("projection")
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    version = notes.get("version", str(RECIPE_VERSION))
    if version != str(RECIPE_VERSION):
        raise ExportError(
            f"{path} is of recipe version {version}, not {RECIPE_VERSION}: give --fit-on pictures "
            "to fit it anew"
        )
    _check_shapes(path, mean, projection)
    return SearchRecipe(
        Whitening(mean.float(), projection.float()),
        name=notes.get("recipe", RECIPE),
        version=int(version),
        images=int(notes.get("images", "0")),
        source=notes.get("source", ""),
        encoder=notes.get("encoder", ""),
        asked=int(notes.get("asked", "0")),
    )


def _at_half_width(projection: Tensor) -> Tensor:
    """Returns it as float16 where that changes nothing, as of every fit since version 6."""
    half = projection.half()
    return half if torch.equal(half.float(), projection) else projection.contiguous()


def _check_shapes(path: Path, mean: Tensor, projection: Tensor) -> None:
    if mean.ndim != 1 or projection.ndim != 2 or projection.shape[1] != len(mean):
        raise ExportError(f"{path} holds tensors of unexpected shapes")
    if not (torch.isfinite(mean).all() and torch.isfinite(projection).all()):
        raise ExportError(f"{path} holds a value that is not finite")
