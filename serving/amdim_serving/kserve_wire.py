"""KServe v2's infer body over REST: JSON, with or without binary tensors behind it.

Knows bytes and JSON; no HTTP. Source: KServe v2 and Triton's binary tensor data extension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from amdim_serving.encodings import to_json
from amdim_serving.errors import RequestError
from amdim_serving.kserve import KServeModel, check_input, read_bytes, read_values


@dataclass(frozen=True, slots=True)
class InferCall:
    """A request that has been read.

    Attributes:
        images: What the model encodes: pixels, or files.
        outputs: Each output named, and whether it is wanted as binary; empty: all of them.
        is_binary: How outputs that were not named are wanted.
        id: Echoed in the answer.
    """

    images: Any
    outputs: tuple[tuple[str, bool], ...]
    is_binary: bool
    id: str


def parse_request(model: KServeModel, body: bytes, header_length: bytes | None) -> InferCall:
    """Reads an infer body.

    Args:
        model: The one asked.
        body: JSON, then binary tensor data.
        header_length: The length of the JSON, where binary data follows.

    Raises:
        RequestError: bad_request, no_images.
    """
    cut = _header_length(header_length, len(body))
    try:
        document = orjson.loads(memoryview(body)[:cut])
    except orjson.JSONDecodeError as error:
        raise RequestError("bad_request", "The body is not valid JSON.") from error
    tensors = _list(_object(document).get("inputs"), "inputs")
    if len(tensors) != 1:
        raise RequestError("bad_request", "The model takes exactly one input.")
    parameters = _parameters(document)
    by_default = parameters.get("binary_data_output") is True
    outputs = tuple(
        (_text(output, "name"), _parameters(output).get("binary_data", by_default) is True)
        for output in map(_object, _list(document.get("outputs", []), "outputs"))
    )
    request_id = document.get("id", "")
    if not isinstance(request_id, str):
        raise RequestError("bad_request", "The value of id is not valid.")
    images = _read_images(model, _object(tensors[0]), memoryview(body)[cut:])
    return InferCall(images, outputs, by_default, request_id)


def encode_answer(
    model: KServeModel, call: InferCall, arrays: Mapping[str, NDArray[np.float32]]
) -> tuple[bytes, int | None]:
    """Returns the answer's body, and the length of its JSON where binary data follows it."""
    binary = dict(call.outputs)
    blobs: list[bytes] = []
    outputs: list[dict[str, Any]] = []
    for name, array in arrays.items():
        head: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": array.shape}
        if binary.get(name, call.is_binary):
            blobs.append(array.astype("<f4", copy=False).tobytes())
            head["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            head["data"] = array.ravel()
        outputs.append(head)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.spec.version}
    if call.id:
        answer["id"] = call.id
    content = to_json({**answer, "outputs": outputs})
    if not blobs:
        return content, None
    return b"".join([content, *blobs]), len(content)


def _header_length(value: bytes | None, total: int) -> int:
    if value is None:
        return total
    if not value.isdigit() or int(value) > total:
        raise RequestError("bad_request", "Inference-Header-Content-Length is not valid.")
    return int(value)


def _read_images(model: KServeModel, tensor: dict[str, Any], binary: memoryview) -> Any:
    shape = _list(tensor.get("shape"), "shape")
    if not all(type(side) is int for side in shape):
        raise RequestError("bad_request", "The value of shape is not valid.")
    check_input(model, _text(tensor, "name"), _text(tensor, "datatype"), shape)
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        if len(binary):
            raise RequestError("bad_request", "The body holds more than its tensors.")
        return read_values(model, tensor.get("data"), shape)
    if type(size) is not int or size != len(binary):
        raise RequestError("bad_request", "The value of binary_data_size is not valid.")
    return read_bytes(model, binary, shape)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError("bad_request", "The body is not a JSON object.")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError("bad_request", f"The field {name} must be a list.")
    return value


def _text(holder: dict[str, Any], name: str) -> str:
    value = holder.get(name)
    if not isinstance(value, str):
        raise RequestError("bad_request", f"The field {name} must be a string.")
    return value


def _parameters(holder: dict[str, Any]) -> dict[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError("bad_request", "The field parameters must be an object.")
    if "shared_memory_region" in parameters:
        raise RequestError("bad_request", "Shared memory is not supported.")
    return parameters
