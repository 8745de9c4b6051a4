"""Tensors on the wire of the KServe v2 protocol over gRPC: requests built, answers read.

Shared by the blocking and the awaiting client. Knows no channel: it makes and takes tritonclient's
objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient import grpc as kserve
from tritonclient.utils import InferenceServerException

from amdim_clients.contract import INPUT, ModelSpec
from amdim_clients.errors import (
    EngineError,
    GatewayError,
    OverloadedError,
    ResponseError,
    ServerError,
    TransportError,
)

# gRPC status -> the HTTP status it stands for in the wire contract, for those worth another try.
_TRANSIENT = {"StatusCode.UNAVAILABLE": 503, "StatusCode.RESOURCE_EXHAUSTED": 429}
_TIMED_OUT = "StatusCode.DEADLINE_EXCEEDED"


def split_batches(
    images: npt.NDArray[np.uint8], outputs: Sequence[str], spec: ModelSpec
) -> list[npt.NDArray[np.uint8]]:
    """The images in batches of at most the model's own limit.

    Args:
        images: (N, S, S, 3) uint8, N at least 1.
        outputs: Checked against the spec.
        spec: The model.

    Raises:
        EngineError: The images or outputs are not what the model takes and gives.
    """
    side = spec.image_size
    if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3) or not len(images):
        raise EngineError(
            f"the model takes uint8 (N, {side}, {side}, 3), not {images.dtype} {images.shape}"
        )
    for name in outputs:
        if name not in spec.outputs:
            raise EngineError(f"the model has no output {name}, only {', '.join(spec.outputs)}")
    size = spec.max_batch_size
    return [images[start : start + size] for start in range(0, len(images), size)]


def infer_arguments(
    batch: npt.NDArray[np.uint8], outputs: Sequence[str], spec: ModelSpec
) -> dict[str, Any]:
    """Keyword arguments of `infer` for one batch."""
    tensor = kserve.InferInput(INPUT, list(batch.shape), "UINT8")
    tensor.set_data_from_numpy(np.ascontiguousarray(batch))
    return {
        "model_name": spec.name,
        "model_version": spec.version,
        "inputs": [tensor],
        "outputs": [kserve.InferRequestedOutput(name) for name in outputs],
    }


def read_result(
    result: Any, outputs: Sequence[str], spec: ModelSpec, *, count: int
) -> dict[str, npt.NDArray[np.float32]]:
    """The arrays of one answer.

    Raises:
        ResponseError: An output is missing, of another shape or not finite.
    """
    arrays = {}
    for name in outputs:
        array = result.as_numpy(name)
        if array is None or array.shape != (count, *spec.outputs[name]):
            raise ResponseError(f"the server's {name} is not of the shape its config says")
        if not np.isfinite(array).all():
            raise ResponseError(f"the server's {name} has values that are not finite")
        arrays[name] = array.astype(np.float32, copy=False)
    return arrays


def concatenate(
    parts: Sequence[dict[str, npt.NDArray[np.float32]]], outputs: Sequence[str]
) -> dict[str, npt.NDArray[np.float32]]:
    """The arrays of all batches, in order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in outputs}


def transient_status(error: InferenceServerException) -> int | None:
    """The HTTP status of a failure that may pass, None for one that stands."""
    return _TRANSIENT.get(error.status() or "")


def as_client_error(error: InferenceServerException) -> GatewayError:
    """What a caller sees of a failed call."""
    status, message = error.status() or "", error.message() or "no message"
    code = status.removeprefix("StatusCode.").lower()
    if status == "StatusCode.UNAVAILABLE":
        return TransportError(f"no answer from the server: {message}")
    if status == _TIMED_OUT:
        return TransportError("the server did not answer in time")
    if status in _TRANSIENT:
        return OverloadedError(_TRANSIENT[status], code, message)
    return ServerError(404 if code == "not_found" else 400, code or "unknown", message)


def newest_version(metadata: Any) -> str:
    """The highest version that a model's metadata names, empty where it names none."""
    return max(_numbers(metadata.versions), key=int, default="")


def _numbers(versions: Sequence[str]) -> Iterator[str]:
    return (version for version in versions if version.isdigit())
