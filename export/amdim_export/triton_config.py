"""A model's Triton configuration: what Triton and the gateway both read.

Knows Triton's fields and how they are written, not how a model is measured.
Source: Triton's model_config.proto.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from amdim_export.names import FORMAT, IMAGES, MODEL_FILE, WINDOWS, output_shapes
from amdim_export.pbtxt import Enum, Value, to_pbtxt

DataType = Literal["TYPE_UINT8", "TYPE_FP32", "TYPE_STRING"]
InstanceKind = Literal["KIND_CPU", "KIND_GPU", "KIND_AUTO"]


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output; `dims` leave out the batch, -1 is a free size."""

    name: str
    data_type: DataType
    dims: tuple[int, ...]

    def fields(self) -> dict[str, Value]:
        """Returns the message as nested plain values."""
        return {"name": self.name, "data_type": Enum(self.data_type), "dims": self.dims}


@dataclasses.dataclass(frozen=True, slots=True)
class DynamicBatching:
    """How waiting requests are joined; without a delay, what waits when an instance is free."""

    max_queue_delay_microseconds: int = 0
    preferred_batch_size: tuple[int, ...] = ()

    def fields(self) -> dict[str, Value]:
        """Returns the message as nested plain values."""
        fields: dict[str, Value] = {}
        if self.preferred_batch_size:
            fields["preferred_batch_size"] = self.preferred_batch_size
        if self.max_queue_delay_microseconds:
            fields["max_queue_delay_microseconds"] = self.max_queue_delay_microseconds
        return fields


@dataclasses.dataclass(frozen=True, slots=True)
class InstanceGroup:
    """How many copies of the model run at a time, and on what."""

    count: int = 1
    kind: InstanceKind = "KIND_CPU"

    def fields(self) -> dict[str, Value]:
        """Returns the message as nested plain values."""
        return {"count": self.count, "kind": Enum(self.kind)}


@dataclasses.dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One model of an ensemble, its tensors joined to the ensemble's by name."""

    model_name: str
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]

    def fields(self) -> dict[str, Value]:
        """Returns the message as nested plain values."""
        return {
            "model_name": self.model_name,
            "model_version": -1,
            "input_map": [{"key": k, "value": v} for k, v in self.input_map.items()],
            "output_map": [{"key": k, "value": v} for k, v in self.output_map.items()],
        }


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model of a repository.

    Attributes:
        backend: Triton's name of what runs it; None for an ensemble.
        warmup_batches: Batch sizes run with zeros before the model is ready.
        parameters: Strings; the project's own begin with `amdim.`.
        latest: How many of the newest versions are served.
    """

    name: str
    backend: str | None
    max_batch_size: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, str]
    default_model_filename: str | None = None
    dynamic_batching: DynamicBatching | None = None
    instance_group: InstanceGroup | None = None
    steps: tuple[EnsembleStep, ...] = ()
    warmup_batches: tuple[int, ...] = ()
    latest: int = 1

    def to_pbtxt(self) -> str:
        """Returns config.pbtxt."""
        fields: dict[str, Value] = {"name": self.name}
        if self.backend is None:
            fields["platform"] = "ensemble"
        else:
            fields["backend"] = self.backend
        if self.default_model_filename is not None:
            fields["default_model_filename"] = self.default_model_filename
        fields["max_batch_size"] = self.max_batch_size
        fields["input"] = [tensor.fields() for tensor in self.inputs]
        fields["output"] = [tensor.fields() for tensor in self.outputs]
        fields["version_policy"] = {"latest": {"num_versions": self.latest}}
        if self.dynamic_batching is not None:
            fields["dynamic_batching"] = self.dynamic_batching.fields()
        if self.instance_group is not None:
            fields["instance_group"] = [self.instance_group.fields()]
        if self.warmup_batches:
            fields["model_warmup"] = [self._warmup(size) for size in self.warmup_batches]
        if self.steps:
            fields["ensemble_scheduling"] = {"step": [step.fields() for step in self.steps]}
        fields["parameters"] = [
            {"key": key, "value": {"string_value": value}} for key, value in self.parameters.items()
        ]
        return to_pbtxt(fields)

    def _warmup(self, batch_size: int) -> dict[str, Value]:
        inputs: list[Value] = [
            {
                "key": tensor.name,
                "value": {
                    "data_type": Enum(tensor.data_type),
                    "dims": tensor.dims,
                    "zero_data": True,
                },
            }
            for tensor in self.inputs
        ]
        return {"name": f"batch {batch_size}", "batch_size": batch_size, "inputs": inputs}


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
) -> ModelConfig:
    """Returns the configuration of an exported encoder run by Triton's ONNX Runtime backend."""
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
    )


def windows_config(
    encoder: str, facts: EncoderFacts, *, stride: int, max_batch_size: int, instances: int = 1
) -> ModelConfig:
    """Returns the configuration of an encoder's windows model: any height and width.

    Args:
        encoder: The encoder's model name.
        facts: Of the windows file, its own artifact's digest among them.
        stride: Pixels between windows.
        max_batch_size: Pictures of one size at most.
        instances: Copies that run at a time.
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
        instance_group=InstanceGroup(instances),
        parameters={
            "amdim.kind": "windows",
            "amdim.encoder": encoder,
            "amdim.window_stride": str(stride),
            **parameters,
        },
    )
