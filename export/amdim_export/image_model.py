"""`amdim_image`: a Triton ensemble that takes encoded pictures, one per batch row.

Two models are published beside the encoder: the decoding step and the ensemble that joins the
two. Both name the encoder's digests, so that they can be checked against it. Knows no graph.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from amdim_export.model_config import (
    DynamicBatching,
    EnsembleStep,
    InstanceGroup,
    ModelConfig,
    Tensor,
)
from amdim_export.names import CONFIG_FILE, IMAGES, output_shapes
from amdim_export.repository import list_versions, publish_version
from amdim_export.triton_config import EncoderFacts

IMAGE = "image"
PIXELS = "pixels"
MODEL_CODE = Path(__file__).with_name("preprocess_model.py")


def preprocess_config(encoder: str, facts: EncoderFacts, *, max_batch_size: int) -> ModelConfig:
    """Returns the configuration of the decoding step of an encoder."""
    side = facts.image_size
    return ModelConfig(
        name=f"{encoder}_preprocess",
        backend="python",
        max_batch_size=max_batch_size,
        inputs=(Tensor(IMAGE, "TYPE_STRING", (1,)),),
        outputs=(Tensor(PIXELS, "TYPE_UINT8", (side, side, 3)),),
        dynamic_batching=DynamicBatching(),
        instance_group=InstanceGroup(),
        parameters=_parameters("preprocess", encoder, facts),
    )


def image_config(encoder: str, facts: EncoderFacts, *, max_batch_size: int) -> ModelConfig:
    """Returns the configuration of the ensemble: bytes in, all of the encoder's outputs out."""
    outputs = output_shapes(facts.embed_dim, facts.embedding_dim)
    return ModelConfig(
        name=f"{encoder}_image",
        backend=None,
        max_batch_size=max_batch_size,
        inputs=(Tensor(IMAGE, "TYPE_STRING", (1,)),),
        outputs=tuple(Tensor(name, "TYPE_FP32", shape) for name, shape in outputs.items()),
        steps=(
            EnsembleStep(f"{encoder}_preprocess", {IMAGE: IMAGE}, {PIXELS: PIXELS}),
            EnsembleStep(encoder, {IMAGES: PIXELS}, {name: name for name in outputs}),
        ),
        parameters=_parameters("image", encoder, facts),
    )


def publish_image_models(
    repository: Path, encoder: str, facts: EncoderFacts, *, max_batch_size: int
) -> list[Path]:
    """Publishes what is not there already, and returns the new versions' folders.

    Raises:
        RepositoryError: The disk refused.
    """
    first = preprocess_config(encoder, facts, max_batch_size=max_batch_size)
    second = image_config(encoder, facts, max_batch_size=max_batch_size)
    published = [
        _publish_changed(repository, first, {"model.py": MODEL_CODE.read_bytes()}),
        _publish_changed(repository, second, {}),
    ]
    return [folder for folder in published if folder is not None]


def _parameters(kind: str, encoder: str, facts: EncoderFacts) -> dict[str, str]:
    # the artifact may change under the ensemble, which always runs the encoder's newest
    kept = dataclasses.replace(facts, artifact_digest=None, precision=None)
    return {"amdim.kind": kind, "amdim.encoder": encoder, **kept.parameters()}


def _publish_changed(repository: Path, config: ModelConfig, files: dict[str, bytes]) -> Path | None:
    folder = repository / config.name
    versions = list_versions(folder)
    wanted = {**files, CONFIG_FILE: config.to_pbtxt().encode()}
    if versions:
        newest = folder / str(versions[-1])
        if all(_holds(newest / name, content) for name, content in wanted.items()):
            return None
    return publish_version(repository, config.name, files, config=config.to_pbtxt())


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
