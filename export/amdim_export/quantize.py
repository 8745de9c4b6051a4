"""An encoder in int8: quantized, fine-tuned, measured on held-out pictures and published.

As with any artifact nothing is published that was not measured. Knows no command line.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from amdim_clients.images import Preprocess
from amdim_export.artifact import Artifact
from amdim_export.certifying_int8 import Measured, certify_int8
from amdim_export.finetune import FineTuning, Progress, distance, finetune
from amdim_export.graph import ServingGraph
from amdim_export.model_config import ModelConfig
from amdim_export.names import CERTIFICATE_FILE, MODEL_FILE
from amdim_export.pictures import HELD_OUT, sample_pictures
from amdim_export.pipeline import Published, encoder_facts
from amdim_export.qdq import translations
from amdim_export.quantized_graph import Scheme, calibrate, freeze, quantized, shift_sums
from amdim_export.repository import publish_version
from amdim_export.storage import float16_projections
from amdim_export.to_onnx import to_onnx
from amdim_export.triton_config import EncoderFacts, encoder_config, int8_config
from amdim_export.whitening import load_recipe
from amdim_training.checkpoint import load_checkpoint

CALIBRATION_LIMIT = 512
"""Pictures that ranges are taken from."""

TRAINING_LIMIT = 20_000
"""Pictures decoded for the fine-tuning at most: more than its updates see."""

_JUDGED = 256
"""Pictures that decide whether the fine-tuning is kept."""

Say = Callable[[str], None]
Target = Literal["openvino", "tensorrt"]


@dataclasses.dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """What a user may choose.

    Attributes:
        name: The encoder's model; what is published is called after it.
        calibrate_on: Packs (their train rows) and folders of pictures to learn from.
        parity_on: Packs (their held-out rows) and folders of other pictures to measure on.
        target: `openvino` publishes NAME_int8 with uint8 activations for CPUs; `tensorrt`
            publishes NAME_int8_gpu, int8 throughout, for ONNX Runtime with TensorRT.
        tuning: The fine-tuning; 0 steps leave it at calibration.
        keep_float: Parts not to quantize; see `Scheme`.
        strict: Publish nothing that misses a target.
    """

    name: str = "amdim"
    calibrate_on: tuple[Path, ...] = ()
    parity_on: tuple[Path, ...] = ()
    target: Target = "openvino"
    tuning: FineTuning = dataclasses.field(default_factory=FineTuning)
    keep_float: frozenset[str] = frozenset()
    max_batch_size: int = 16
    version: int | None = None
    instances: int = 1
    max_queue_delay_us: int = 0
    strict: bool = False


def quantize_encoder(
    checkpoint_path: Path,
    repository: Path,
    options: QuantizeOptions,
    *,
    say: Say = lambda _: None,
    progress: Progress | None = None,
) -> Published:
    """Quantizes an encoder, measures what that cost and publishes it with its certificate.

    The same checkpoint, pictures and options give the same file on the same machine.

    Raises:
        ExportError: Among them ParityError, when `strict` and a target was missed; nothing is
            published then.
        TrainingError: The checkpoint cannot be read.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    recipe = load_recipe(checkpoint.path)
    side = checkpoint.encoder.config.image_size
    say("decoding pictures")
    preprocess = Preprocess.for_image_size(side)
    # whether there is anything to measure on is better known before minutes are spent
    sample_pictures(options.parity_on, preprocess, limit=1, splits=HELD_OUT)
    limit = TRAINING_LIMIT if options.tuning.steps else CALIBRATION_LIMIT
    pixels = torch.from_numpy(
        sample_pictures(options.calibrate_on, Preprocess.for_image_size(side), limit=limit)
    )
    with torch.no_grad():  # folding norms into weights is no part of any training
        graph = ServingGraph(
            checkpoint.encoder,
            checkpoint.normalization,
            None if recipe is None else recipe.whitening,
        )
    student = quantized_graph(graph, pixels, options, say=say, progress=progress)
    say("exporting")
    measured = Measured(Artifact(export_graph(student, side), student, frozenset()), graph)
    say("measuring it against the trained encoder")
    certificate = certify_int8(
        checkpoint,
        recipe,
        measured,
        engine="openvino" if options.target == "openvino" else "onnxruntime",
        parity_on=options.parity_on,
        max_batch_size=options.max_batch_size,
    )
    if options.strict:
        certificate.precisions["int8"].require()
    config = _config(encoder_facts(checkpoint, recipe, certificate), options)
    folder = publish_version(
        repository,
        config.name,
        {
            MODEL_FILE: measured.artifact.model,
            CERTIFICATE_FILE: certificate.to_json().encode(),
        },
        config=config.to_pbtxt(),
        version=options.version,
    )
    return Published(folder, folder / MODEL_FILE, certificate)


def quantized_graph(
    graph: ServingGraph,
    pixels: Tensor,
    options: QuantizeOptions,
    *,
    say: Say = lambda _: None,
    progress: Progress | None = None,
) -> ServingGraph:
    """Returns a float graph quantized, calibrated, fine-tuned and frozen; it stays as it is.

    A fine-tuning that led further away is not kept.

    Args:
        graph: The encoder in float.
        pixels: (N, S, S, 3) uint8 to calibrate and to train on.
        options: What to quantize and how long to train.
        say: Told what takes time.
        progress: Told of every update.
    """
    scheme = Scheme(signed=options.target == "tensorrt", keep_float=options.keep_float)
    say("calibrating")
    spread = torch.linspace(0, len(pixels) - 1, min(CALIBRATION_LIMIT, len(pixels))).long()
    shifted = copy.deepcopy(graph)
    if not scheme.signed:
        shift_sums(shifted, pixels[spread])
    student = quantized(shifted, scheme)
    calibrate(student, pixels[spread])
    if options.tuning.steps:
        say("fine-tuning")
        judged, calibrated = pixels[:: max(1, len(pixels) // _JUDGED)], copy.deepcopy(student)
        finetune(student, graph, pixels, options.tuning, progress=progress)
        if _distance(student, graph, judged) > _distance(calibrated, graph, judged):
            student = calibrated  # a rate or length that did not suit this encoder
    freeze(student)
    return student


def export_graph(graph: ServingGraph, side: int) -> bytes:
    """Returns a graph's ONNX file, quantized or not.

    Raises:
        GraphError: The exporter left something that does not belong.
    """
    return to_onnx(
        graph,
        torch.zeros((2, side, side, 3), dtype=torch.uint8),
        output_names=graph.output_names,
        dynamic={0: "N"},
        halves=float16_projections(graph),
        translations=translations(),
    )


def _distance(student: ServingGraph, graph: ServingGraph, pixels: Tensor) -> float:
    with torch.no_grad():
        return float(distance(student(pixels), graph(pixels)))


def _config(facts: EncoderFacts, options: QuantizeOptions) -> ModelConfig:
    if options.target == "openvino":
        return int8_config(
            options.name,
            facts,
            max_batch_size=options.max_batch_size,
            instances=options.instances,
            max_queue_delay_us=options.max_queue_delay_us,
        )
    return encoder_config(
        f"{options.name}_int8_gpu",
        facts,
        max_batch_size=options.max_batch_size,
        instances=options.instances,
        kind="KIND_GPU",
        max_queue_delay_us=options.max_queue_delay_us,
        accelerate=True,
    )
