"""A model's Triton configuration: what Triton and the gateway both read.

Knows Triton's fields and how they are written, not which models there are.
Source: Triton's model_config.proto.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

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
    profiles: tuple[int, ...] = ()  # of a TensorRT engine, to choose among by batch

    def fields(self) -> dict[str, Value]:
        """Returns the message as nested plain values."""
        fields: dict[str, Value] = {"count": self.count, "kind": Enum(self.kind)}
        if self.profiles:
            fields["profile"] = [str(index) for index in self.profiles]
        return fields


@dataclasses.dataclass(frozen=True, slots=True)
class Accelerator:
    """What runs a graph on a GPU in place of the backend's own kernels."""

    name: str
    parameters: Mapping[str, str]

    def fields(self) -> dict[str, Value]:
        """Returns the message as nested plain values."""
        pairs: list[Value] = [{"key": k, "value": v} for k, v in self.parameters.items()]
        return {"name": self.name, "parameters": pairs}


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
        warmup_side: What a free height or width is in them, pixels.
        parameters: Strings; the project's own begin with `amdim.`.
        latest: How many of the newest versions are served.
        files_by_sm: File name by GPU compute capability, in place of the default file.
        gpu_accelerator: What runs the graph on a GPU.
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
    warmup_side: int = 1
    latest: int = 1
    files_by_sm: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gpu_accelerator: Accelerator | None = None

    def to_pbtxt(self) -> str:
        """Returns config.pbtxt."""
        fields: dict[str, Value] = {"name": self.name}
        if self.backend is None:
            fields["platform"] = "ensemble"
        else:
            fields["backend"] = self.backend
        if self.default_model_filename is not None:
            fields["default_model_filename"] = self.default_model_filename
        if self.files_by_sm:
            fields["cc_model_filenames"] = [
                {"key": sm, "value": name} for sm, name in self.files_by_sm.items()
            ]
        fields["max_batch_size"] = self.max_batch_size
        fields["input"] = [tensor.fields() for tensor in self.inputs]
        fields["output"] = [tensor.fields() for tensor in self.outputs]
        fields["version_policy"] = {"latest": {"num_versions": self.latest}}
        if self.dynamic_batching is not None:
            fields["dynamic_batching"] = self.dynamic_batching.fields()
        if self.instance_group is not None:
            fields["instance_group"] = [self.instance_group.fields()]
        if self.gpu_accelerator is not None:
            fields["optimization"] = {
                "execution_accelerators": {
                    "gpu_execution_accelerator": [self.gpu_accelerator.fields()]
                }
            }
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
                    "dims": [self.warmup_side if size < 0 else size for size in tensor.dims],
                    "zero_data": True,
                },
            }
            for tensor in self.inputs
        ]
        return {"name": f"batch {batch_size}", "batch_size": batch_size, "inputs": inputs}
