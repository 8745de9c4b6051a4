"""An encoder's TensorRT engine: built, run, measured and published on the GPU that will serve it.

As with any artifact nothing is published that was not measured. Knows no command line.
"""

from __future__ import annotations

from pathlib import Path

from amdim_clients.images import Preprocess
from amdim_export.artifact import build_artifact, opset_for
from amdim_export.canaries import draw_canaries
from amdim_export.certificate import CANARY_TOLERANCES, Canaries, Certificate
from amdim_export.certifying import PARITY_LIMIT, with_real_pictures
from amdim_export.digests import encoder_digest
from amdim_export.eager import reference_vectors
from amdim_export.engine_file import ENGINE_FILE, EngineFacts, engine_file_name
from amdim_export.fingerprint import artifact_digest
from amdim_export.fitting import Say
from amdim_export.image_model import publish_image_models
from amdim_export.names import CERTIFICATE_FILE, EMBEDDING, GLOBAL
from amdim_export.parity import Encode, Tolerance, measure, require
from amdim_export.pipeline import ExportOptions, Published, encoder_facts, recipe_for
from amdim_export.provenance import machine, now, tool_versions
from amdim_export.repository import publish_version
from amdim_export.tensorrt_build import Plan, batch_profiles, build_plan
from amdim_export.tensorrt_runtime import TensorRTEncoder, TensorRTMachine, open_machine
from amdim_export.triton_config import tensorrt_config
from amdim_export.whitening import SearchRecipe
from amdim_training.checkpoint import Checkpoint, load_checkpoint


def export_tensorrt(
    checkpoint_path: Path,
    repository: Path,
    options: ExportOptions,
    *,
    say: Say = lambda _: None,
    note: Say = lambda _: None,
) -> list[Published]:
    """Builds and publishes `NAME_tensorrt` for this machine's GPU and TensorRT.

    Raises:
        EngineError: Something is missing here, or TensorRT refused the graph.
        ParityError: The engine's vectors are too far from the encoder's.
    """
    here = open_machine()  # first, for the rest takes minutes
    checkpoint = load_checkpoint(checkpoint_path)
    recipe = recipe_for(checkpoint, options, say, note)
    say(f"exporting the graph in {options.precision}")
    onnx_model = build_artifact(checkpoint, recipe, precision=options.precision).model
    say(f"building the engine with TensorRT {here.version} on {here.gpu}")
    side = checkpoint.encoder.config.image_size
    profiles = batch_profiles(side, options.max_batch_size)
    plan = build_plan(here.trt, onnx_model, profiles)
    batches = tuple((p.smallest[0], p.best[0], p.largest[0]) for p in profiles)
    say("measuring it against the trained encoder")
    certificate = certify_plan(
        checkpoint, recipe, plan, TensorRTEncoder(here, plan.data, batches), here, options
    )
    facts = EngineFacts(
        artifact_digest=certificate.artifact_digest,
        onnx_digest=artifact_digest(onnx_model),
        tensorrt=here.version,
        sm=here.sm,
        gpu=here.gpu,
        precision=options.precision,
        batches=batches,
    )
    encoder = encoder_facts(checkpoint, recipe, certificate)
    config = tensorrt_config(
        options.name,
        encoder,
        max_batch_size=options.max_batch_size,
        engines={here.sm: engine_file_name(here.sm)},
        profiles=len(profiles),
        tensorrt=here.version,
        instances=options.instances,
        max_queue_delay_us=options.max_queue_delay_us,
    )
    folder = publish_version(
        repository,
        config.name,
        {
            engine_file_name(here.sm): plan.data,
            ENGINE_FILE: facts.to_json().encode(),
            CERTIFICATE_FILE: certificate.to_json().encode(),
        },
        config=config.to_pbtxt(),
        version=options.version,
    )
    if options.image:
        publish_image_models(
            repository, config.name, encoder, max_batch_size=options.max_batch_size
        )
    return [Published(folder, folder / engine_file_name(here.sm), certificate)]


def certify_plan(
    checkpoint: Checkpoint,
    recipe: SearchRecipe | None,
    plan: Plan,
    encode: Encode,
    here: TensorRTMachine,
    options: ExportOptions,
) -> Certificate:
    """Measures an engine against the trained encoder in float32.

    Raises:
        ParityError: An output differs by more than its precision may.
    """
    side = checkpoint.encoder.config.image_size
    preprocess = Preprocess.for_image_size(side)
    drawn = draw_canaries(side)
    largest = options.max_batch_size  # the engine takes no more
    pictures, splits = options.measured_on
    pixels, source = with_real_pictures(drawn, preprocess, pictures, splits, limit=PARITY_LIMIT)
    expected = reference_vectors(checkpoint, None if recipe is None else recipe.whitening, pixels)
    parity = measure(
        expected,
        encode,
        pixels,
        batches=sorted({min(size, largest) for size in (1, 2, 7, largest)}),
        default_output=GLOBAL if recipe is None else EMBEDDING,
    )
    tolerance = CANARY_TOLERANCES[options.precision]
    require(parity.outputs, Tolerance() if options.precision == "fp32" else tolerance)
    return Certificate(
        encoder_digest=encoder_digest(checkpoint, recipe),
        preprocess_digest=preprocess.digest,
        artifact_digest=artifact_digest(plan.data),
        precision=options.precision,
        weights_stored=options.precision,
        parity=parity,
        source=source,
        canaries=Canaries(
            drawn, {name: value[: len(drawn)] for name, value in expected.items()}, tolerance
        ),
        created=now(),
        tools={
            **tool_versions(),
            "opset": str(opset_for(options.precision)),
            "tensorrt": here.version,
        },
        machine={**machine(), "gpu": here.gpu, "sm": here.sm},
        recipe="" if recipe is None else recipe.description,
    )
