"""The whole of an export: checkpoint -> graph -> file -> measured -> certified -> published.

Nothing is published that was not measured. Knows no command line.
"""

from __future__ import annotations

import dataclasses
import datetime
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from amdim_clients.images import PREPROCESS_VERSION, Preprocess
from amdim_export.canaries import draw_canaries
from amdim_export.certificate import Canaries, Certificate
from amdim_export.digests import encoder_digest
from amdim_export.eager import Vectors, reference_vectors
from amdim_export.errors import ParityError
from amdim_export.fingerprint import artifact_digest
from amdim_export.graph import ServingGraph
from amdim_export.image_model import publish_image_models
from amdim_export.names import CERTIFICATE_FILE, EMBEDDING, GLOBAL, MODEL_FILE
from amdim_export.parity import Tolerance, agreement, measure, neighbor_agreement, require
from amdim_export.repository import publish_version
from amdim_export.runtime import LEVELS, OnnxEncoder
from amdim_export.storage import round_weights
from amdim_export.to_onnx import OPSET, to_onnx
from amdim_export.triton_config import EncoderFacts, encoder_config
from amdim_export.whitening import SearchRecipe, fit_recipe, load_recipe, save_recipe
from amdim_training.checkpoint import Checkpoint, load_checkpoint
from amdim_training.data import load_images

PARITY_LIMIT = 512
"""Pictures measured at most; a gallery of so many says what neighbours do."""
HELD_OUT = ("val", "validation", "test")

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class ExportOptions:
    """What a user may choose of an export."""

    name: str = "amdim"
    fit_on: tuple[Path, ...] = ()
    parity_on: tuple[Path, ...] = ()
    weights: str = "fp32"
    max_batch_size: int = 16
    embedding_dim: int = 256
    version: int | None = None
    instances: int = 1
    max_queue_delay_us: int = 0
    image: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Artifact:
    """An exported file and what it claims to compute.

    Attributes:
        model: The file's bytes.
        graph: What was exported, its weights rounded where the file's are.
        halves: Names of the weights stored as float16.
    """

    model: bytes
    graph: ServingGraph
    halves: frozenset[str]


def export_encoder(
    checkpoint_path: Path, repository: Path, options: ExportOptions, *, say: Say = lambda _: None
) -> tuple[Path, Certificate]:
    """Exports, measures and publishes one encoder.

    Returns:
        The published version's folder and its certificate.

    Raises:
        ExportError: Among them ParityError, when vectors differ; nothing is published then.
        TrainingError: The checkpoint or the pictures cannot be read.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    recipe = _recipe(checkpoint, options, say)
    say("exporting the graph")
    artifact = build_artifact(checkpoint, recipe, half=options.weights == "fp16")
    say("measuring it against the encoder")
    certificate = certify(checkpoint, recipe, artifact, options, say=say)
    facts = _facts(checkpoint, recipe, certificate)
    config = encoder_config(
        options.name,
        facts,
        max_batch_size=options.max_batch_size,
        instances=options.instances,
        max_queue_delay_us=options.max_queue_delay_us,
    )
    folder = publish_version(
        repository,
        options.name,
        {MODEL_FILE: artifact.model, CERTIFICATE_FILE: certificate.to_json().encode()},
        config=config.to_pbtxt(),
        version=options.version,
    )
    if options.image:
        publish_image_models(repository, options.name, facts, max_batch_size=options.max_batch_size)
    return folder, certificate


def build_artifact(
    checkpoint: Checkpoint, recipe: SearchRecipe | None, *, half: bool = False
) -> Artifact:
    """Returns an encoder's ONNX file, its weights stored as float16 where `half`.

    Raises:
        GraphError: The exported graph is not what it should be.
    """
    whitening = None if recipe is None else recipe.whitening
    graph = ServingGraph(checkpoint.encoder, checkpoint.normalization, whitening)
    halves = round_weights(graph) if half else frozenset[str]()
    side = checkpoint.encoder.config.image_size
    model = to_onnx(
        graph,
        torch.zeros(2, side, side, 3, dtype=torch.uint8),
        output_names=graph.output_names,
        dynamic={0: "N"},
        halves=halves,
    )
    return Artifact(model, graph, halves)


def certify(
    checkpoint: Checkpoint,
    recipe: SearchRecipe | None,
    artifact: Artifact,
    options: ExportOptions,
    *,
    say: Say = lambda _: None,
) -> Certificate:
    """Measures an artifact; a certificate exists only where it held.

    Raises:
        ParityError: An output differs by more than DESIGN's numbers, or is not finite.
    """
    whitening = None if recipe is None else recipe.whitening
    side = checkpoint.encoder.config.image_size
    drawn = draw_canaries(side)
    pixels, source = _parity_pixels(checkpoint, options, drawn)
    say(f"measuring on {len(pixels)} pictures: {source}")
    trained = reference_vectors(checkpoint, whitening, pixels)
    # rounding the weights is not the exporter's error, so it is measured by itself
    expected = _run(artifact.graph, pixels) if artifact.halves else trained
    default = GLOBAL if recipe is None else EMBEDDING
    batches = tuple(dict.fromkeys((1, 2, 7, options.max_batch_size)))
    parity = measure(
        expected,
        OnnxEncoder(artifact.model),
        pixels,
        batches=batches,
        default_output=default,
    )
    require(parity.outputs, Tolerance())
    canary_vectors = {name: value[: len(drawn)] for name, value in expected.items()}
    _require_levels_agree(artifact, drawn, canary_vectors)
    loss = None
    if artifact.halves:
        loss = {name: agreement(trained[name], expected[name]) for name in trained}
    return Certificate(
        encoder_digest=encoder_digest(checkpoint, recipe),
        preprocess_digest=Preprocess.for_image_size(side).digest,
        artifact_digest=artifact_digest(artifact.model),
        precision="fp32",
        weights_stored="fp16" if artifact.halves else "fp32",
        parity=parity,
        source=source,
        canaries=Canaries(drawn, canary_vectors),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tools=tool_versions(),
        machine={"cpu": _cpu_name(), "system": platform.system(), "arch": platform.machine()},
        storage_loss=loss,
        storage_neighbor_agreement=(
            None if loss is None else neighbor_agreement(trained[default], expected[default])
        ),
        recipe="" if recipe is None else f"{recipe.name}, on {recipe.images} pictures",
    )


def tool_versions() -> dict[str, str]:
    """Returns what made and measured an artifact."""
    names = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")
    return {"opset": str(OPSET), **{name: metadata.version(name) for name in names}}


def _recipe(checkpoint: Checkpoint, options: ExportOptions, say: Say) -> SearchRecipe | None:
    if not options.fit_on:
        return load_recipe(checkpoint.path)
    say("fitting the search vector")
    recipe = fit_recipe(checkpoint, options.fit_on, components=options.embedding_dim)
    save_recipe(checkpoint.path, recipe)
    return recipe


def _facts(
    checkpoint: Checkpoint, recipe: SearchRecipe | None, certificate: Certificate
) -> EncoderFacts:
    config = checkpoint.encoder.config
    return EncoderFacts(
        image_size=config.image_size,
        resize=Preprocess.for_image_size(config.image_size).resize,
        preprocess_version=PREPROCESS_VERSION,
        embed_dim=config.embed_dim,
        embedding_dim=None if recipe is None else len(recipe.whitening.projection),
        default_output=GLOBAL if recipe is None else EMBEDDING,
        encoder_digest=certificate.encoder_digest,
        preprocess_digest=certificate.preprocess_digest,
        artifact_digest=certificate.artifact_digest,
        precision=certificate.precision,
    )


def _parity_pixels(
    checkpoint: Checkpoint, options: ExportOptions, drawn: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.uint8], str]:
    """Returns the canaries and then real pictures, and where these come from."""
    preprocess = Preprocess.for_image_size(checkpoint.encoder.config.image_size)
    chosen: Sequence[Path] = options.parity_on or options.fit_on
    splits = HELD_OUT if options.parity_on else ("train",)
    if not chosen:
        return drawn, f"{len(drawn)} drawn canaries"
    room = PARITY_LIMIT - len(drawn)
    real = load_images(chosen, preprocess, splits=splits).subset(room).pixels
    names = ", ".join(path.name for path in chosen)
    source = f"{len(drawn)} drawn canaries and {len(real)} pictures of {names}"
    return np.concatenate([drawn, real]), source


def _run(graph: ServingGraph, pixels: npt.NDArray[np.uint8]) -> Vectors:
    parts: dict[str, list[torch.Tensor]] = {}
    with torch.inference_mode():
        for start in range(0, len(pixels), 64):
            chunk = torch.from_numpy(pixels[start : start + 64])
            for name, value in zip(graph.output_names, graph(chunk), strict=True):
                parts.setdefault(name, []).append(value)
    return {name: torch.cat(values).contiguous().numpy() for name, values in parts.items()}


def _require_levels_agree(
    artifact: Artifact, drawn: npt.NDArray[np.uint8], expected: Vectors
) -> None:
    """Runs the file at every optimisation level of ONNX Runtime, since a user may set any."""
    for level in LEVELS[:-1]:
        given = OnnxEncoder(artifact.model, level=level)(drawn)
        try:
            require(
                {name: agreement(value, given[name]) for name, value in expected.items()},
                Tolerance(),
            )
        except ParityError as error:
            raise ParityError(f"at optimisation level {level}: {error}") from error


def _cpu_name() -> str:
    """Returns the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
