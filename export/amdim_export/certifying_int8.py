"""Measures an int8 artifact against the trained encoder, in the engine that is to run it.

Unlike an fp32 artifact it is allowed a loss; how much, the certificate says. Knows no repository.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from amdim_clients.images import Preprocess
from amdim_export.artifact import Artifact
from amdim_export.canaries import draw_canaries
from amdim_export.certificate import Canaries, Certificate
from amdim_export.digests import encoder_digest
from amdim_export.eager import reference_vectors
from amdim_export.errors import ParityError
from amdim_export.fingerprint import artifact_digest
from amdim_export.graph import ServingGraph
from amdim_export.names import EMBEDDING, GLOBAL
from amdim_export.openvino_precision import measure_speedup, opened
from amdim_export.parity import Encode, Pixels, agreement, measure
from amdim_export.pictures import HELD_OUT, sample_pictures
from amdim_export.precision import CertifiedPrecision, canary_tolerance
from amdim_export.provenance import machine, now, tool_versions
from amdim_export.runtime import OnnxEncoder
from amdim_export.to_onnx import to_onnx
from amdim_export.whitening import SearchRecipe
from amdim_training.checkpoint import Checkpoint

HELD_OUT_LIMIT = 2_048
"""Pictures measured at most: ten neighbours among so many are a finer test than among few."""

_SAME = 0.999
"""Other sums may round a few values to the next level; a wrong kernel is nowhere near."""

Engine = Literal["openvino", "onnxruntime"]


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """What is to be measured: a quantized artifact, and the float graph that it was made of."""

    artifact: Artifact
    plain: ServingGraph


def certify_int8(
    checkpoint: Checkpoint,
    recipe: SearchRecipe | None,
    measured: Measured,
    *,
    engine: Engine,
    parity_on: Sequence[Path],
    max_batch_size: int = 16,
) -> Certificate:
    """Measures an int8 artifact on held-out pictures, at batches 1, 2, 7 and the largest.

    Args:
        checkpoint: The trained encoder.
        recipe: Its search vector, where it has one.
        measured: The artifact.
        engine: What runs it. OpenVINO is also timed, against itself on the float graph.
        parity_on: Packs (their held-out rows) or folders of pictures.
        max_batch_size: The largest batch it will serve.

    Raises:
        ParityError: An output is missing, of another shape, not finite, or depends on the batch.
        PicturesError: There are no pictures to measure on.
        UnavailableError: The engine is not installed.
    """
    side = checkpoint.encoder.config.image_size
    whitening = None if recipe is None else recipe.whitening
    preprocess = Preprocess.for_image_size(side)
    real = sample_pictures(parity_on, preprocess, limit=HELD_OUT_LIMIT, splits=HELD_OUT)
    drawn = draw_canaries(side)
    wanted = reference_vectors(checkpoint, whitening, drawn)
    model = measured.artifact.model
    with _opened(model, engine) as encode:
        parity = measure(
            reference_vectors(checkpoint, whitening, real),
            encode,
            real,
            batches=tuple(dict.fromkeys((1, 2, 7, max_batch_size))),
            default_output=GLOBAL if recipe is None else EMBEDDING,
        )
        given = encode(drawn)
        require_batches_agree(encode, real)
    output = GLOBAL if recipe is None else EMBEDDING
    speedup = _speedup(measured, real, output) if engine == "openvino" else None
    source = f"{len(real)} held-out pictures of {', '.join(path.name for path in parity_on)}"
    tolerance = canary_tolerance({name: agreement(wanted[name], given[name]) for name in wanted})
    int8 = CertifiedPrecision("int8", engine, tolerance, parity, speedup, source)
    return Certificate(
        encoder_digest=encoder_digest(checkpoint, recipe),
        preprocess_digest=preprocess.digest,
        artifact_digest=artifact_digest(model),
        precision="int8",
        weights_stored="int8",
        parity=parity,
        source=source,
        canaries=Canaries(drawn, wanted, tolerance),
        created=now(),
        tools=tool_versions(),
        machine=machine(),
        recipe="" if recipe is None else recipe.description,
        precisions={"int8": int8},
    )


def require_batches_agree(
    encode: Encode, pixels: Pixels, *, sizes: Sequence[int] = (1, 2, 7)
) -> None:
    """Refuses an engine whose vectors of a picture depend on how many others go with it.

    An int8 artifact's own loss would hide a kernel that is wrong at one size only.

    Args:
        encode: The artifact.
        pixels: (N, S, S, 3) uint8; the first 16 are run.
        sizes: Batches to compare with all of them together.

    Raises:
        ParityError: Names the size and the output.
    """
    pixels = pixels[:16]
    together = encode(pixels)
    for size in sizes:
        parts = [encode(pixels[at : at + size]) for at in range(0, len(pixels), size)]
        for name, value in together.items():
            apart = np.concatenate([part[name] for part in parts])
            found = agreement(value.reshape(len(value), -1), apart.reshape(len(apart), -1))
            if not found.min_cosine >= _SAME:
                raise ParityError(
                    f"{name} of a picture in a batch of {size} has cosine {found.min_cosine:.4f} "
                    f"to the same one's in a batch of {len(pixels)}"
                )


@contextmanager
def _opened(model: bytes, engine: Engine) -> Iterator[Encode]:
    if engine == "onnxruntime":
        yield OnnxEncoder(model)
        return
    with opened(model) as encode:
        yield encode


def _speedup(measured: Measured, pixels: Pixels, output: str) -> float:
    side, plain = pixels.shape[1], measured.plain
    example = torch.zeros((2, side, side, 3), dtype=torch.uint8)
    model = to_onnx(plain, example, output_names=plain.output_names, dynamic={0: "N"})
    return measure_speedup(model, measured.artifact.model, pixels, output)
