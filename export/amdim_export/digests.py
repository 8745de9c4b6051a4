"""The fingerprint of an encoder, whatever file it lies in and at whatever precision it runs.

Knows no repository. An artifact's bytes and the pixels' definition have digests of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from amdim_export.whitening import SearchRecipe
from amdim_training.checkpoint import Checkpoint

_IGNORED = "num_batches_tracked"  # counts updates, decides no vector


def encoder_digest(checkpoint: Checkpoint, recipe: SearchRecipe | None) -> str:
    """Returns `sha256:<hex>` of all that decides a vector but precision.

    That is the trained weights, the pixels' normalisation and the fitted search vector.
    """
    tensors: dict[str, npt.NDArray[np.float32]] = {
        f"encoder.{name}": value.detach().float().numpy()
        for name, value in checkpoint.encoder.state_dict().items()
        if not name.endswith(_IGNORED)
    }
    tensors["normalization.mean"] = np.asarray(checkpoint.normalization.mean, np.float32)
    tensors["normalization.std"] = np.asarray(checkpoint.normalization.std, np.float32)
    notes = ""
    if recipe is not None:
        notes = f"{recipe.name}/{recipe.version}"
        tensors["search.mean"] = recipe.whitening.mean.float().numpy()
        tensors["search.projection"] = recipe.whitening.projection.float().numpy()
    return digest_of_tensors(tensors, notes)


def digest_of_tensors(tensors: Mapping[str, npt.NDArray[np.float32]], notes: str) -> str:
    """Returns `sha256:<hex>` of named float32 tensors, in the order of their names."""
    digest = hashlib.sha256(f"amdim encoder 1\n{notes}\n".encode())
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name], dtype="<f4")
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.tobytes())
    return "sha256:" + digest.hexdigest()
