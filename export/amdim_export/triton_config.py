"""The configurations of this project's models, for each of Triton's backends that runs them.

Knows what each model takes and gives, not how a configuration is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from amdim_export.model_config import (
    Accelerator,
    DynamicBatching,
    InstanceGroup,
    InstanceKind,
    ModelConfig,
    Tensor,
)
from amdim_export.names import FORMAT, IMAGES, MODEL_FILE, WINDOWS, output_shapes


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderFacts:
    """What an encoder's configuration says of it beyond Triton's own fields."""

    image_size: int
    resize: int
    preprocess_version: int
    embed_dim: int
    embedding_dim: int | None
    default_output: str
    encoder_digest: str
    preprocess_digest: str
    artifact_digest: str | None
    precision: str | None = "fp32"

    def parameters(self) -> dict[str, str]:
        """Returns the `amdim.*` parameters; those of an absent `embedding` are left out."""
        values = {"format": str(FORMAT)}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                values[field.name] = str(value)
        return {f"amdim.{key}": value for key, value in values.items()}


def encoder_config(
    name: str,
    facts: EncoderFacts,
    *,
    max_batch_size: int,
    instances: int = 1,
    kind: InstanceKind = "KIND_CPU",
    max_queue_delay_us: int = 0,
    accelerate: bool = False,
) -> ModelConfig:
    """Returns the configuration of an exported encoder run by Triton's ONNX Runtime backend.

    Args:
        name: The model's.
        facts: Of its file.
        max_batch_size: Images at most.
        instances: Copies that run at a time.
        kind: What they run on.
        max_queue_delay_us: Microseconds a batch may wait to fill.
        accelerate: Let TensorRT run the graph, in float32, where the kind is a GPU.
    """
    side = facts.image_size
    outputs = output_shapes(facts.embed_dim, facts.embedding_dim)
    return ModelConfig(
        name=name,
        backend="onnxruntime",
        default_model_filename=MODEL_FILE,
        max_batch_size=max_batch_size,
        inputs=(Tensor(IMAGES, "TYPE_UINT8", (side, side, 3)),),
        outputs=tuple(Tensor(key, "TYPE_FP32", shape) for key, shape in outputs.items()),
        dynamic_batching=DynamicBatching(max_queue_delay_us),
        instance_group=InstanceGroup(instances, kind),
        warmup_batches=(1, max_batch_size),
        parameters=facts.parameters(),
        gpu_accelerator=tensorrt_accelerator(facts, max_batch_size) if accelerate else None,
    )


def tensorrt_accelerator(facts: EncoderFacts, max_batch_size: int) -> Accelerator:
    """Returns ONNX Runtime's TensorRT, one engine for every batch that Triton may form.

    Source: README of Triton's onnxruntime_backend, "ONNX Runtime with TensorRT optimization".
    """

    def shape(batch: int) -> str:
        return f"{IMAGES}:{batch}x{facts.image_size}x{facts.image_size}x3"

    return Accelerator(
        "tensorrt",
        {
            # no narrower than the file is certified for; quantizers in a graph need INT8 allowed
            "precision_mode": "INT8" if facts.precision == "int8" else "FP32",
            "max_workspace_size_bytes": "1073741824",
            "trt_profile_min_shapes": shape(1),
            "trt_profile_opt_shapes": shape(max_batch_size),
            "trt_profile_max_shapes": shape(max_batch_size),
        },
    )


def windows_config(
    encoder: str,
    facts: EncoderFacts,
    *,
    stride: int,
    max_batch_size: int,
    instances: int = 1,
    kind: InstanceKind = "KIND_CPU",
) -> ModelConfig:
    """Returns the configuration of an encoder's windows model: any height and width.

    Args:
        encoder: The encoder's model name.
        facts: Of the windows file, its own artifact's digest among them.
        stride: Pixels between windows.
        max_batch_size: Pictures of one size at most.
        instances: Copies that run at a time.
        kind: What they run on.
    """
    dim = facts.embedding_dim
    assert dim is not None, "windows are search vectors"
    parameters = dataclasses.replace(facts, default_output=WINDOWS).parameters()
    return ModelConfig(
        name=f"{encoder}_windows",
        backend="onnxruntime",
        default_model_filename=MODEL_FILE,
        max_batch_size=max_batch_size,
        inputs=(Tensor(IMAGES, "TYPE_UINT8", (-1, -1, 3)),),
        outputs=(Tensor(WINDOWS, "TYPE_FP32", (-1, -1, dim)),),
        dynamic_batching=DynamicBatching(),
        instance_group=InstanceGroup(instances, kind),
        warmup_batches=(1,),
        warmup_side=2 * facts.image_size,
        parameters={
            "amdim.kind": "windows",
            "amdim.encoder": encoder,
            "amdim.window_stride": str(stride),
            **parameters,
        },
    )


def tensorrt_config(
    encoder: str,
    facts: EncoderFacts,
    *,
    max_batch_size: int,
    engines: Mapping[str, str],
    profiles: int,
    tensorrt: str,
    instances: int = 1,
    max_queue_delay_us: int = 0,
) -> ModelConfig:
    """Returns the configuration of an encoder's TensorRT engine.

    There is no default file: where the GPU is of another architecture, Triton finds none to load.

    Args:
        encoder: The encoder's model name.
        facts: Of the engine.
        max_batch_size: Images at most.
        engines: File name by compute capability.
        profiles: How many optimisation profiles it has; Triton takes the nearest.
        tensorrt: The version that built it.
        instances: Copies that run at a time.
        max_queue_delay_us: Microseconds a batch may wait to fill.
    """
    onnx = encoder_config(
        f"{encoder}_tensorrt", facts, max_batch_size=max_batch_size, instances=instances
    )
    return dataclasses.replace(
        onnx,
        backend="tensorrt",
        default_model_filename=None,
        files_by_sm=dict(engines),
        dynamic_batching=DynamicBatching(max_queue_delay_us),
        instance_group=InstanceGroup(instances, "KIND_GPU", tuple(range(profiles))),
        parameters={
            "amdim.kind": "tensorrt",
            "amdim.encoder": encoder,
            "amdim.tensorrt": tensorrt,
            **onnx.parameters,
        },
    )


def int8_config(
    encoder: str,
    facts: EncoderFacts,
    *,
    max_batch_size: int,
    instances: int = 1,
    max_queue_delay_us: int = 0,
) -> ModelConfig:
    """Returns the configuration of an encoder's int8 file, run by Triton's OpenVINO backend.

    That backend fixes the batch to the largest and refuses smaller ones unless it may pad them,
    so that every batch costs a full one there. The gateway's own engine runs any size.

    Args:
        encoder: The encoder's model name.
        facts: Of the int8 file.
        max_batch_size: Images at most.
        instances: Copies that run at a time.
        max_queue_delay_us: Microseconds a batch may wait to fill.
    """
    onnx = encoder_config(
        f"{encoder}_int8",
        facts,
        max_batch_size=max_batch_size,
        instances=instances,
        max_queue_delay_us=max_queue_delay_us,
    )
    return dataclasses.replace(
        onnx,
        backend="openvino",
        parameters={
            "ENABLE_BATCH_PADDING": "YES",
            "amdim.encoder": encoder,
            **onnx.parameters,
        },
    )
