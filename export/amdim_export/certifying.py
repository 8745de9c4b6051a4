"""Measures an exported encoder against the trained one; a certificate exists only where it held.

Knows no repository. The numbers to hold are DESIGN's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from amdim_clients.images import Preprocess
from amdim_export.artifact import Artifact, require_levels_agree
from amdim_export.canaries import draw_canaries
from amdim_export.certificate import Canaries, Certificate
from amdim_export.digests import encoder_digest
from amdim_export.eager import reference_vectors
from amdim_export.fingerprint import artifact_digest
from amdim_export.names import EMBEDDING, GLOBAL
from amdim_export.openvino_precision import certify_bf16
from amdim_export.parity import Tolerance, agreement, measure, neighbor_agreement, require
from amdim_export.pictures import TRAIN, Pixels, sample_pictures
from amdim_export.provenance import machine, now, tool_versions
from amdim_export.runtime import OnnxEncoder
from amdim_export.whitening import SearchRecipe
from amdim_training.checkpoint import Checkpoint

PARITY_LIMIT = 512
"""Pictures measured at most; a gallery of so many says what neighbours do."""


def certify(
    checkpoint: Checkpoint,
    recipe: SearchRecipe | None,
    artifact: Artifact,
    *,
    max_batch_size: int = 16,
    parity_on: Sequence[Path] = (),
    splits: Sequence[str] = TRAIN,
) -> Certificate:
    """Measures an artifact on drawn and real pictures, at batches 1, 2, 7 and the largest.

    Args:
        checkpoint: The trained encoder.
        recipe: Its search vector, where it has one.
        artifact: What was exported of it.
        max_batch_size: The largest batch it will serve.
        parity_on: Packs or folders of real pictures; without, the drawn ones alone.
        splits: Rows of a pack to take.

    Raises:
        ParityError: An output differs by more than it may, or is not finite.
    """
    whitening = None if recipe is None else recipe.whitening
    side = checkpoint.encoder.config.image_size
    drawn = draw_canaries(side)
    pixels, source = with_real_pictures(
        drawn, Preprocess.for_image_size(side), parity_on, splits, limit=PARITY_LIMIT
    )
    trained = reference_vectors(checkpoint, whitening, pixels)
    # rounding the weights is not the exporter's error, so it is measured by itself
    expected = artifact.run_graph(pixels) if artifact.halves else trained
    default = GLOBAL if recipe is None else EMBEDDING
    parity = measure(
        expected,
        OnnxEncoder(artifact.model),
        pixels,
        batches=tuple(dict.fromkeys((1, 2, 7, max_batch_size))),
        default_output=default,
    )
    require(parity.outputs, Tolerance())
    canaries = Canaries(drawn, {name: value[: len(drawn)] for name, value in expected.items()})
    require_levels_agree(artifact, drawn, canaries.vectors)
    loss = lost_neighbors = None
    if artifact.halves:
        loss = {name: agreement(trained[name], expected[name]) for name in trained}
        lost_neighbors = neighbor_agreement(trained[default], expected[default])
    real = len(drawn)  # the rest are pictures that somebody took
    bf16 = certify_bf16(
        artifact.model,
        {name: value[real:] for name, value in trained.items()},
        pixels[real:],
        canaries,
        default_output=default,
        source=source,
    )
    return Certificate(
        encoder_digest=encoder_digest(checkpoint, recipe),
        preprocess_digest=Preprocess.for_image_size(side).digest,
        artifact_digest=artifact_digest(artifact.model),
        precision="fp32",
        weights_stored="fp16" if artifact.halves else "fp32",
        parity=parity,
        source=source,
        canaries=canaries,
        created=now(),
        tools=tool_versions(),
        machine=machine(),
        storage_loss=loss,
        storage_neighbor_agreement=lost_neighbors,
        recipe="" if recipe is None else recipe.description,
        precisions={bf16.precision: bf16},
    )


def with_real_pictures(
    drawn: Pixels,
    preprocess: Preprocess,
    parity_on: Sequence[Path],
    splits: Sequence[str],
    *,
    limit: int,
) -> tuple[Pixels, str]:
    """Returns the drawn pictures and then real ones, `limit` in all, and where they come from."""
    if not parity_on:
        return drawn, f"{len(drawn)} drawn canaries"
    real = sample_pictures(parity_on, preprocess, limit=limit - len(drawn), splits=splits)
    names = ", ".join(path.name for path in parity_on)
    source = f"{len(drawn)} drawn canaries and {len(real)} pictures of {names}"
    return np.concatenate([drawn, real]), source
