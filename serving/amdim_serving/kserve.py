"""KServe v2 as both its faces need it: names, metadata, statistics, and tensors to arrays.

Knows neither REST nor gRPC; those translate to and from this.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray

from amdim_clients.contract import INPUT, ModelSpec
from amdim_serving.errors import RequestError
from amdim_serving.gateway import Gateway
from amdim_serving.opening import ModelConfig
from amdim_serving.stats import ModelStats
from amdim_serving.windows import WindowsService

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


@dataclass(frozen=True, slots=True)
class KServeModel:
    """One of the models that KServe v2 clients see.

    Attributes:
        input: The only input; its datatype says how its data is read.
        config: Triton's message.
        encode: Takes the input as `read_bytes` or `read_values` returned it, and output names.
    """

    name: str
    spec: ModelSpec
    input: TensorInfo
    config: ModelConfig
    stats: ModelStats
    encode: Callable[[Any, Sequence[str]], Awaitable[Mapping[str, NDArray[np.float32]]]]

    @property
    def outputs(self) -> list[TensorInfo]:
        """The outputs, in the config's order."""
        return [TensorInfo(name, "FP32", (-1, *shape)) for name, shape in self.spec.outputs.items()]


def served_models(gateway: Gateway) -> list[KServeModel]:
    """Returns the model that takes pixels, `<name>_image` that takes files, and the windows'."""
    service, spec = gateway.service, gateway.service.spec
    windows = service.windows
    pixels = TensorInfo(INPUT, "UINT8", (-1, spec.image_size, spec.image_size, 3))
    files = TensorInfo("image", "BYTES", (-1, 1))
    return [
        KServeModel(spec.name, spec, pixels, gateway.config, service.stats, service.encode_pixels),
        KServeModel(
            f"{spec.name}_image",
            spec,
            files,
            gateway.files_config,
            service.file_stats,
            service.encode_files,
        ),
        *([] if windows is None else [_windows_model(windows)]),
    ]


def _windows_model(windows: WindowsService) -> KServeModel:
    pixels = TensorInfo(INPUT, "UINT8", (-1, -1, -1, 3))
    return KServeModel(
        windows.spec.name,
        windows.spec,
        pixels,
        windows.model.config,
        windows.stats,
        windows.encode_pixels,
    )


def find_model(gateway: Gateway, name: str, version: str | None) -> KServeModel:
    """Returns a served model.

    Raises:
        RequestError: unknown_model.
    """
    for model in served_models(gateway):
        if model.name == name and (version or model.spec.version) == model.spec.version:
            return model
    raise RequestError("unknown_model")


def model_state(gateway: Gateway, model: KServeModel) -> str:
    """Returns Triton's word for whether a served model gets work, by its last check."""
    return "UNAVAILABLE" if model.name in gateway.unavailable else "READY"


def requested_outputs(spec: ModelSpec, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the outputs to send: those named, else all of them, as Triton does.

    Raises:
        RequestError: unknown_output.
    """
    if any(name not in spec.outputs for name in names):
        raise RequestError("unknown_output")
    return tuple(dict.fromkeys(names)) or tuple(spec.outputs)


def check_input(model: KServeModel, name: str, datatype: str, shape: Sequence[int]) -> None:
    """Checks a tensor's head before its data is looked at.

    Raises:
        RequestError: bad_request, no_images.
    """
    wanted = model.input
    if name != wanted.name:
        raise RequestError("bad_request", f"The model's only input is {wanted.name}.")
    if datatype != wanted.datatype:
        raise RequestError("bad_request", f"The input must be of type {wanted.datatype}.")
    rows = tuple(shape[1:])
    fits = rows == wanted.shape[1:] or (wanted.datatype == "BYTES" and not rows)
    if model.spec.gives_windows:
        fits = len(rows) == 3 and rows[2] == 3 and _enters(model.spec, *rows[:2])
    if not shape or shape[0] < 0 or not fits:
        raise RequestError("bad_request", _shape_wanted(model))
    if shape[0] == 0:
        raise RequestError("no_images")


def _enters(spec: ModelSpec, height: int, width: int) -> bool:
    """Whether height and width are S and a multiple of the windows' stride more."""
    more = [side - spec.image_size for side in (height, width)]
    return min(more) >= 0 and not any(rest % (spec.window_stride or 1) for rest in more)


def _shape_wanted(model: KServeModel) -> str:
    spec = model.spec
    if spec.gives_windows:
        return (
            f"The input's shape must be [N, H, W, 3], H and W {spec.image_size} and a multiple of "
            f"{spec.window_stride} more."
        )
    sides = ", ".join(str(side) for side in model.input.shape[1:])
    return f"The input's shape must be [N, {sides}]."


def read_bytes(model: KServeModel, data: bytes | memoryview, shape: Sequence[int]) -> Any:
    """Returns raw tensor data as what the model encodes: pixels, or a list of files.

    Raises:
        RequestError: bad_request.
    """
    if model.input.datatype == "BYTES":
        return _split_files(memoryview(data), shape[0])
    return images_from_bytes(data, shape)


def read_values(model: KServeModel, values: Any, shape: Sequence[int]) -> Any:
    """Returns a tensor's values, flat or nested, as what the model encodes.

    Raises:
        RequestError: bad_request.
    """
    if model.input.datatype != "BYTES":
        return images_from_numbers(values, shape)
    if not isinstance(values, list) or not all(isinstance(file, bytes) for file in values):
        raise RequestError("bad_request", "Encoded files must be sent as binary tensor data.")
    if len(values) != shape[0]:
        raise RequestError("bad_request", "The input's data does not fit its shape.")
    return values


def _split_files(data: memoryview, count: int) -> list[memoryview]:
    """Returns the elements of a BYTES tensor: each a little-endian u32 length, then its bytes."""
    files: list[memoryview] = []
    at = 0
    while at + 4 <= len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data):
            break
        files.append(data[at + 4 : end])
        at = end
    if at != len(data) or len(files) != count:
        raise RequestError("bad_request", "The input's data is not as long as its shape says.")
    return files


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


def triton_json(config: ModelConfig) -> dict[str, Any]:
    """Returns a model's config as Triton shows it in JSON: its field names, plain numbers."""
    shown: dict[str, Any] = MessageToDict(config, preserving_proto_field_name=True)
    for tensor in [*shown["input"], *shown["output"]]:
        tensor["dims"] = [int(side) for side in tensor["dims"]]  # int64 is text in JSON
    batching = shown.get("dynamic_batching", {})
    for name in batching.keys() & {"max_queue_delay_microseconds"}:
        batching[name] = int(batching[name])
    return shown
