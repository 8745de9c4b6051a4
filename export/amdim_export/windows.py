"""`amdim_windows`: measured against the encoder on each window, cut out and encoded by itself.

Knows no repository. Source: DESIGN, "Windows": an encoder that pads nothing sees a window of a
larger picture as it sees a picture of that size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amdim_clients.images import Preprocess
from amdim_export.artifact import Artifact, require_levels_agree
from amdim_export.canaries import CANARIES, draw_canaries
from amdim_export.certificate import Canaries, Certificate
from amdim_export.certifying import with_real_pictures
from amdim_export.digests import encoder_digest
from amdim_export.eager import Vectors, reference_vectors
from amdim_export.fingerprint import artifact_digest
from amdim_export.names import EMBEDDING, WINDOWS
from amdim_export.parity import Agreement, Parity, Tolerance, agreement, measure, require, worst
from amdim_export.pictures import TRAIN, Pixels
from amdim_export.provenance import machine, now, tool_versions
from amdim_export.runtime import OnnxEncoder
from amdim_export.whitening import SearchRecipe
from amdim_training.checkpoint import Checkpoint

PICTURES = 32
"""Pictures at most: each has dozens of windows, and every one is encoded as a crop too."""


def window_stride(image_size: int) -> int:
    """Returns how many pixels lie between windows: S / 8."""
    return image_size // 8


def window_crops(pixels: Pixels, image_size: int) -> Pixels:
    """Cuts every window out: (N, H, W, 3) -> (N, h, w, S, S, 3)."""
    side, stride = image_size, window_stride(image_size)
    views = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(1, 2))
    # (N, H-S+1, W-S+1, 3, S, S), of which every stride-th window exists
    return np.array(views[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3), order="C")


def trained_windows(checkpoint: Checkpoint, recipe: SearchRecipe, pixels: Pixels) -> Vectors:
    """Returns `windows` (N, h, w, E), every window cut out and encoded by the trained encoder."""

    def encode(crops: Pixels) -> npt.NDArray[np.float32]:
        return reference_vectors(checkpoint, recipe.whitening, crops, only=(EMBEDDING,))[EMBEDDING]

    return _each_window(pixels, checkpoint.encoder.config.image_size, encode)


def rounded_windows(artifact: Artifact, image_size: int, pixels: Pixels) -> Vectors:
    """Returns the same, every crop encoded by PyTorch with an artifact's rounded weights."""
    return _each_window(pixels, image_size, lambda crops: artifact.run_graph(crops)[WINDOWS])


def _each_window(
    pixels: Pixels, image_size: int, encode: Callable[[Pixels], npt.NDArray[np.float32]]
) -> Vectors:
    crops = window_crops(pixels, image_size)
    vectors = encode(crops.reshape(-1, image_size, image_size, 3))
    return {WINDOWS: vectors.reshape(*crops.shape[:3], -1)}


def certify_windows(
    checkpoint: Checkpoint,
    recipe: SearchRecipe,
    artifact: Artifact,
    *,
    parity_on: Sequence[Path] = (),
    splits: Sequence[str] = TRAIN,
    max_batch_size: int = 4,
) -> Certificate:
    """Measures a windows file at several sizes; a certificate exists only where all held.

    Raises:
        ParityError: A window differs from its crop by more than 1e-4 of the largest value.
        PicturesError: The pictures cannot be read.
    """
    side = checkpoint.encoder.config.image_size
    stride = window_stride(side)
    large, source = with_real_pictures(
        draw_canaries(2 * side), Preprocess(2 * side, 2 * side), parity_on, splits, limit=PICTURES
    )
    run = OnnxEncoder(artifact.model)
    batches = tuple(dict.fromkeys((1, 2, max_batch_size)))
    found: list[Parity] = []
    losses: list[Agreement] = []
    for height, width in measured_sizes(side):
        pixels = np.ascontiguousarray(large[:, :height, :width])
        trained = trained_windows(checkpoint, recipe, pixels)
        # rounding the weights is not the exporter's error, so it is measured by itself
        expected = rounded_windows(artifact, side, pixels) if artifact.halves else trained
        parity = measure(expected, run, pixels, batches=batches, default_output=WINDOWS)
        require(parity.outputs, Tolerance())
        found.append(parity)
        losses.append(agreement(trained[WINDOWS], expected[WINDOWS]))
    drawn = np.ascontiguousarray(large[:CANARIES, : side + stride, : side + 2 * stride])
    canaries = Canaries(
        drawn,
        rounded_windows(artifact, side, drawn)
        if artifact.halves
        else trained_windows(checkpoint, recipe, drawn),
    )
    require_levels_agree(artifact, canaries.pixels, canaries.vectors)
    sizes = ", ".join(f"{height}x{width}" for height, width in measured_sizes(side))
    return Certificate(
        encoder_digest=encoder_digest(checkpoint, recipe),
        preprocess_digest=Preprocess.for_image_size(side).digest,
        artifact_digest=artifact_digest(artifact.model),
        precision="fp32",
        weights_stored="fp16" if artifact.halves else "fp32",
        parity=Parity(
            {WINDOWS: worst([parity.outputs[WINDOWS] for parity in found])},
            min(parity.neighbor_agreement for parity in found),
            len(large),
            batches,
        ),
        source=f"{source}, every window of {sizes} pixels against its crop",
        canaries=canaries,
        created=now(),
        tools=tool_versions(),
        machine=machine(),
        storage_loss={WINDOWS: worst(losses)} if artifact.halves else None,
        recipe=recipe.description,
    )


def measured_sizes(image_size: int) -> list[tuple[int, int]]:
    """Returns heights and widths: one window, a row, a column's worth more, and many."""
    side, stride = image_size, window_stride(image_size)
    return [
        (side, side),
        (side, side + stride),
        (side + 3 * stride, side + stride),
        (2 * side, side + 4 * stride),
    ]
