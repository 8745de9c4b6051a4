"""The bodies of `POST /embed`: requests built, answers read, errors told apart.

One place for both clients, so that sync and async cannot drift. Knows no transport: bytes in,
values out.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from amdim_clients.errors import ResponseError, ServerError
from amdim_clients.inputs import ImageFailure, RequestBatch
from amdim_clients.window_results import PictureGrids, grid_of
from amdim_clients.windows import WindowGrid

EMBED_PATH: Final = "/embed"
MODEL_PATH: Final = "/model"
WINDOWS: Final = "windows"
_START: Final = b'{"images":['
_ENTRY_BYTES: Final = len(b'{"data":""}')
_DTYPES: Final = ("float32", "float16")
_IDENTITY: Final = (
    "model",
    "version",
    "encoder_digest",
    "preprocess_digest",
    "artifact_digest",
)


@dataclass(frozen=True)
class EmbedOptions:
    """What is asked of the server, the same for every image of a call."""

    outputs: tuple[str, ...] | None  # None: the model's default output
    normalize: bool
    model: str | None  # None: the model served as default
    scales: tuple[float, ...] | None = None  # of windows

    @classmethod
    def of_windows(cls, scales: Iterable[float], *, model: str | None) -> EmbedOptions:
        """Options that ask for windows alone; as half precision, since they are many."""
        return cls((WINDOWS,), True, model, tuple(scales))

    @classmethod
    def of(
        cls, outputs: Iterable[str] | None, *, normalize: bool, model: str | None
    ) -> EmbedOptions:
        """Options from what callers pass; one name counts as a list of one."""
        if isinstance(outputs, str):
            outputs = [outputs]
        return cls(None if outputs is None else tuple(outputs), normalize, model)


@dataclass(frozen=True)
class ServedBy:
    """Which model answered; vectors of different encoders must not meet."""

    model: str
    version: str
    encoder_digest: str
    preprocess_digest: str
    artifact_digest: str
    normalized: bool


# The vectors of one picture: by output, or of its windows.
Item: TypeAlias = Mapping[str, npt.NDArray[np.float32]] | PictureGrids


@dataclass(frozen=True)
class BatchAnswer:
    """One answer of the server, its images in the order of the request."""

    served_by: ServedBy
    items: tuple[Item | ImageFailure, ...]


class EmbedBody:
    """The JSON body of one request, made image by image as it is sent; may be read again.

    Images and vectors travel in base64. It needs no escapes, so an encoder of JSON, which looks
    for some, would take most of a client's time; and one string of all images would be copied
    several times on its way.
    """

    def __init__(self, batch: RequestBatch, options: EmbedOptions) -> None:
        """Take what is to be sent."""
        self._payloads = batch.payloads
        rest: dict[str, Any] = {"normalize": options.normalize, "encoding_format": "base64"}
        if options.outputs is not None:
            rest["outputs"] = list(options.outputs)
        if options.model is not None:
            rest["model"] = options.model
        if options.scales is not None:
            rest["scales"] = list(options.scales)
            rest["dtype"] = "float16"
        self._end = b"]," + json.dumps(rest).encode("ascii")[1:]

    def __len__(self) -> int:
        """How many bytes there are."""
        images = sum(_ENTRY_BYTES + (len(data) + 2) // 3 * 4 for data in self._payloads)
        commas = len(self._payloads) - 1
        return len(_START) + images + commas + len(self._end)

    def __iter__(self) -> Iterator[bytes]:
        yield _START
        for at, data in enumerate(self._payloads):
            encoded = base64.b64encode(data)
            yield b'%b{"data":"%b"}' % (b"," if at else b"", encoded)
        yield self._end

    @property
    def longest(self) -> int:
        """Bytes of the largest image."""
        return max(map(len, self._payloads))

    @property
    def headers(self) -> dict[str, str]:
        """What must be said of it."""
        return {"content-type": "application/json", "content-length": str(len(self))}


def parse_embed(content: bytes, count: int) -> BatchAnswer:
    """The answer to a request of `count` images.

    Raises:
        ResponseError: The answer breaks the wire contract, or a vector is not finite.
    """
    try:
        document = json.loads(content)
        served_by = ServedBy(
            **{name: str(document[name]) for name in _IDENTITY},
            normalized=bool(document["normalized"]),
        )
        entries = document["data"]
        if [entry["index"] for entry in entries] != list(range(count)):
            raise ResponseError(f"the answer has not one entry for each of {count} images in order")
        return BatchAnswer(served_by, tuple(_item(entry) for entry in entries))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResponseError(f"the answer breaks the wire contract: {error!r}") from error


def parse_error(status: int, content: bytes) -> ServerError:
    """The error that a failed request carries, whatever stands between here and the server."""
    try:
        error = json.loads(content)["error"]
        return ServerError(status, str(error["code"]), str(error["message"]), error["request_id"])
    except (KeyError, TypeError, ValueError):
        return ServerError(status, "unknown", "the answer is not one of this service")


def parse_model(status: int, content: bytes) -> Mapping[str, Any]:
    """The answer to `GET /model`.

    Raises:
        ServerError: The server refused.
        ResponseError: The answer is no JSON object.
    """
    if status != 200:
        raise parse_error(status, content)
    try:
        document = json.loads(content)
    except ValueError as error:
        raise ResponseError("the answer is not JSON") from error
    if not isinstance(document, dict):
        raise ResponseError("the answer is not a JSON object")
    return document


def stack_outputs(
    items: Sequence[Mapping[str, npt.NDArray[np.float32]]],
) -> dict[str, npt.NDArray[np.float32]]:
    """Per output, the vectors of all images as one (N, ...) array.

    Raises:
        ResponseError: Two images came back with other outputs or shapes.
    """
    try:
        names = list(items[0]) if items else []
        if any(list(item) != names for item in items):
            raise ResponseError("images came back with different outputs")
        return {name: np.stack([item[name] for item in items]) for name in names}
    except ValueError as error:
        raise ResponseError("vectors of one output have different shapes") from error


def _item(entry: Mapping[str, Any]) -> Item | ImageFailure:
    if "error" in entry:
        return ImageFailure(str(entry["error"]["code"]), str(entry["error"]["message"]))
    if WINDOWS in entry:
        return tuple(_windows(part) for part in entry[WINDOWS])
    vectors = {name: _vector(value) for name, value in entry.items() if name not in ("index", "id")}
    if not vectors:
        raise ValueError("an entry has neither vectors nor an error")
    return vectors


def _windows(part: Mapping[str, Any]) -> tuple[WindowGrid, npt.NDArray[np.float32]]:
    vectors = _vector(part)
    return grid_of(float(part["scale"]), vectors, part["first_box"]), vectors


def _vector(encoded: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    if encoded["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {encoded['dtype']!r} is not one of {_DTYPES}")
    try:
        data = base64.b64decode(encoded["data"], validate=True)
    except binascii.Error as error:
        raise ValueError("a vector is not base64") from error
    dtype = np.dtype(encoded["dtype"]).newbyteorder("<")
    vector = np.frombuffer(data, dtype).reshape(encoded["shape"]).astype(np.float32)
    if not np.isfinite(vector).all():
        raise ValueError("a vector is not finite")
    return vector
