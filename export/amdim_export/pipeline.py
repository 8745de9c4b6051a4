"""The whole of an export: checkpoint -> graph -> file -> measured -> certified -> published.

Nothing is published that was not measured. Knows no command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from amdim_clients.images import PREPROCESS_VERSION, Preprocess
from amdim_export.artifact import build_artifact, build_windows_artifact
from amdim_export.certificate import Certificate
from amdim_export.certifying import certify
from amdim_export.errors import ExportError
from amdim_export.fitting import Say, fitted_recipe
from amdim_export.image_model import publish_image_models
from amdim_export.model_config import InstanceKind, ModelConfig
from amdim_export.names import CERTIFICATE_FILE, EMBEDDING, GLOBAL, MODEL_FILE
from amdim_export.pictures import HELD_OUT, TRAIN
from amdim_export.repository import publish_version
from amdim_export.triton_config import EncoderFacts, encoder_config, windows_config
from amdim_export.whitening import SearchRecipe
from amdim_export.windows import certify_windows, window_stride
from amdim_training.checkpoint import Checkpoint, load_checkpoint

WINDOWS_BATCH = 4
"""Pictures in a batch of the windows model at most: each may hold hundreds of windows."""


@dataclasses.dataclass(frozen=True, slots=True)
class ExportOptions:
    """What a user may choose of an export.

    Attributes:
        fit_on: Pictures to fit the search vector on; empty takes the fit made before.
        refit: Fit again also where the same was fitted before.
        gpu: ONNX models are to run on a GPU.
        accelerate: By TensorRT, called by ONNX Runtime.
        precision: What a TensorRT engine computes in.
        strict: Publish nothing of which a measured precision misses its targets.
    """

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
    windows: bool = False
    refit: bool = False
    gpu: bool = False
    accelerate: bool = False
    precision: str = "fp32"
    strict: bool = False

    @property
    def measured_on(self) -> tuple[Sequence[Path], Sequence[str]]:
        """Real pictures to measure on and which of a pack's rows: held-out ones where given."""
        return (self.parity_on, HELD_OUT) if self.parity_on else (self.fit_on, TRAIN)

    @property
    def kind(self) -> InstanceKind:
        """What ONNX models run on."""
        return "KIND_GPU" if self.gpu or self.accelerate else "KIND_CPU"


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """A version that was published: its folder, its artifact and its certificate."""

    folder: Path
    artifact: Path
    certificate: Certificate


def export_encoder(
    checkpoint_path: Path,
    repository: Path,
    options: ExportOptions,
    *,
    say: Say = lambda _: None,
    note: Say = lambda _: None,
) -> list[Published]:
    """Exports, measures and publishes one encoder, with the models that go with it.

    Everything is measured before anything is published.

    Args:
        checkpoint_path: A checkpoint's folder, or a run's.
        repository: Where to publish.
        options: What the user chose.
        say: Told what takes time.
        note: Told, in a sentence, what else was done.

    Returns:
        What was published: the encoder, and its windows model where asked for.

    Raises:
        ExportError: Among them ParityError, when vectors differ; nothing is published then.
        TrainingError: The checkpoint cannot be read.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    recipe = recipe_for(checkpoint, options, say, note)
    ready = [_encoder(checkpoint, recipe, options, say)]
    if options.windows:
        if recipe is None:
            raise ExportError("windows need a search vector: give --fit-on pictures to fit it on")
        ready.append(_windows(checkpoint, recipe, options, say))
    if options.strict:
        for _, _, certificate in ready:
            for certified in certificate.precisions.values():
                certified.require()
    published = []
    for config, model, certificate in ready:
        folder = publish_version(
            repository,
            config.name,
            {MODEL_FILE: model, CERTIFICATE_FILE: certificate.to_json().encode()},
            config=config.to_pbtxt(),
            version=options.version,
        )
        published.append(Published(folder, folder / MODEL_FILE, certificate))
    if options.image:
        facts = encoder_facts(checkpoint, recipe, published[0].certificate)
        publish_image_models(repository, options.name, facts, max_batch_size=options.max_batch_size)
    return published


def _encoder(
    checkpoint: Checkpoint, recipe: SearchRecipe | None, options: ExportOptions, say: Say
) -> tuple[ModelConfig, bytes, Certificate]:
    say("exporting the encoder")
    artifact = build_artifact(checkpoint, recipe, half=options.weights == "fp16")
    say("measuring it against the trained encoder")
    pictures, splits = options.measured_on
    certificate = certify(
        checkpoint,
        recipe,
        artifact,
        max_batch_size=options.max_batch_size,
        parity_on=pictures,
        splits=splits,
    )
    config = encoder_config(
        options.name,
        encoder_facts(checkpoint, recipe, certificate),
        max_batch_size=options.max_batch_size,
        instances=options.instances,
        kind=options.kind,
        max_queue_delay_us=options.max_queue_delay_us,
        accelerate=options.accelerate,
    )
    return config, artifact.model, certificate


def _windows(
    checkpoint: Checkpoint, recipe: SearchRecipe, options: ExportOptions, say: Say
) -> tuple[ModelConfig, bytes, Certificate]:
    say("exporting the windows model")
    artifact = build_windows_artifact(checkpoint, recipe, half=options.weights == "fp16")
    say("measuring every window against its crop")
    pictures, splits = options.measured_on
    largest = min(options.max_batch_size, WINDOWS_BATCH)
    certificate = certify_windows(
        checkpoint, recipe, artifact, max_batch_size=largest, parity_on=pictures, splits=splits
    )
    config = windows_config(
        options.name,
        encoder_facts(checkpoint, recipe, certificate),
        stride=window_stride(checkpoint.encoder.config.image_size),
        max_batch_size=largest,
        instances=options.instances,
        kind=options.kind,
    )
    return config, artifact.model, certificate


def recipe_for(
    checkpoint: Checkpoint, options: ExportOptions, say: Say, note: Say
) -> SearchRecipe | None:
    """Returns the search vector that the options ask for; see `fitted_recipe`."""
    return fitted_recipe(
        checkpoint,
        options.fit_on,
        components=options.embedding_dim,
        refit=options.refit,
        say=say,
        note=note,
    )


def encoder_facts(
    checkpoint: Checkpoint, recipe: SearchRecipe | None, certificate: Certificate
) -> EncoderFacts:
    """Returns what the configuration of any of an encoder's artifacts says of it."""
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
