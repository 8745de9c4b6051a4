"""KServe v2 as both its faces need it: names, metadata, statistics, and tensors to arrays.

Knows neither REST nor gRPC; those translate to and from this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amdim_clients.contract import INPUT, ModelSpec
from amdim_serving.errors import RequestError
from amdim_serving.gateway import Gateway

SERVER_NAME = "amdim-embed"
REST_EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
GRPC_EXTENSIONS = ("model_configuration", "model_repository", "statistics")
PLATFORM = "onnxruntime_onnx"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a model, -1 for the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def input_info(spec: ModelSpec) -> TensorInfo:
    """Returns the model's only input."""
    return TensorInfo(INPUT, "UINT8", (-1, spec.image_size, spec.image_size, 3))


def output_infos(spec: ModelSpec) -> list[TensorInfo]:
    """Returns the model's outputs, in its config's order."""
    return [TensorInfo(name, "FP32", (-1, *shape)) for name, shape in spec.outputs.items()]


def find_spec(gateway: Gateway, model: str, version: str | None) -> ModelSpec:
    """Returns the spec of a served model.

    Raises:
        RequestError: unknown_model.
    """
    spec = gateway.service.spec
    if model != spec.name or (version or spec.version) != spec.version:
        raise RequestError("unknown_model")
    return spec


def requested_outputs(spec: ModelSpec, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the outputs to send: those named, else all of them, as Triton does.

    Raises:
        RequestError: unknown_output.
    """
    if any(name not in spec.outputs for name in names):
        raise RequestError("unknown_output")
    return tuple(dict.fromkeys(names)) or tuple(spec.outputs)


def check_input(spec: ModelSpec, name: str, datatype: str, shape: Sequence[int]) -> None:
    """Checks a tensor's head before its data is looked at.

    Raises:
        RequestError: bad_request, no_images.
    """
    wanted = input_info(spec)
    if name != wanted.name:
        raise RequestError("bad_request", f"The model's only input is {wanted.name}.")
    if datatype != wanted.datatype:
        raise RequestError("bad_request", f"The input must be of type {wanted.datatype}.")
    if len(shape) != 4 or tuple(shape[1:]) != wanted.shape[1:] or shape[0] < 0:
        side = spec.image_size
        raise RequestError("bad_request", f"The input's shape must be [N, {side}, {side}, 3].")
    if shape[0] == 0:
        raise RequestError("no_images")


def images_from_bytes(data: bytes | memoryview, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Returns raw tensor data as an array, (N, S, S, 3) uint8, a view of it.

    Raises:
        RequestError: bad_request, when the data is not as long as the shape says.
    """
    if len(data) != math.prod(shape):
        raise RequestError("bad_request", "The input's data is not as long as its shape says.")
    return np.frombuffer(data, np.uint8).reshape(tuple(shape))


def images_from_numbers(values: Any, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Returns JSON numbers, flat or nested, as an array, (N, S, S, 3) uint8.

    Raises:
        RequestError: bad_request.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # lists of unequal lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "iu" or array.size != math.prod(shape):
        raise RequestError("bad_request", "The input's data does not fit its shape.")
    if array.min() < 0 or array.max() > 255:
        raise RequestError("bad_request", "A value of the input is not in 0..255.")
    return array.astype(np.uint8).reshape(tuple(shape))
