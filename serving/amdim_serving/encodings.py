"""How vectors are written: JSON numbers, base64, .npy and safetensors.

Knows arrays and bytes, no HTTP: the routes choose, this encodes.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from amdim_serving.errors import RequestError

Dtype = Literal["float32", "float16"]
EncodingFormat = Literal["float", "base64"]
Vectors = NDArray[np.float32]

JSON = "application/json"
NPY = "application/x-npy"
SAFETENSORS = "application/vnd.safetensors"

_NUMPY_DTYPES = {"float32": "<f4", "float16": "<f2"}
_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16"}


def to_json(answer: Mapping[str, Any]) -> bytes:
    """Returns an answer as JSON; NumPy arrays in it become nested lists of numbers."""
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def cast(vectors: Vectors, dtype: Dtype) -> NDArray[np.floating[Any]]:
    """Returns vectors as little-endian `dtype`, C order.

    Raises:
        RequestError: invalid_embedding, when a value does not fit.
    """
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(vectors, dtype=_NUMPY_DTYPES[dtype])
    if dtype == "float16" and not np.isfinite(array).all():
        raise RequestError("invalid_embedding", "A value of the vector does not fit in float16.")
    return array


def json_vectors(vectors: Vectors, encoding_format: EncodingFormat, dtype: Dtype) -> Any:
    """Returns one image's vectors of one output as `to_json` takes them.

    Args:
        vectors: (..., D) float32, C order.
        encoding_format: Numbers, or an object with shape, dtype and base64 data.
        dtype: Of the base64 data; numbers are written as float32.

    Raises:
        RequestError: invalid_embedding.
    """
    if encoding_format == "float":
        return vectors
    array = cast(vectors, dtype)
    data = base64.b64encode(array.data).decode("ascii")
    return {"shape": array.shape, "dtype": dtype, "data": data}


def to_npy(vectors: Sequence[Vectors], dtype: Dtype) -> bytes:
    """Returns images' vectors of one output as an .npy file, (N, ..., D).

    Raises:
        RequestError: invalid_embedding.
    """
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, cast(np.stack(vectors), dtype), allow_pickle=False)
    return buffer.getvalue()


def to_safetensors(
    outputs: Mapping[str, Vectors], dtype: Dtype, metadata: Mapping[str, str]
) -> bytes:
    """Returns images' vectors by name as a safetensors file.

    Source: the safetensors format: header length as u64, JSON header, tensors end to end.

    Raises:
        RequestError: invalid_embedding.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    blobs: list[bytes] = []
    end = 0
    for name, vectors in outputs.items():
        array = cast(vectors, dtype)
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[dtype],
            "shape": array.shape,
            "data_offsets": [start, end],
        }
        blobs.append(array.tobytes())
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # tensors start aligned
    return struct.pack("<Q", len(head)) + head + b"".join(blobs)
