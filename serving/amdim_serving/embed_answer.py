"""The answer of /embed in each of its encodings.

Knows the wire contract's answer; not where its vectors come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amdim_clients.contract import WINDOWS
from amdim_serving.encodings import (
    NPY,
    SAFETENSORS,
    json_vectors,
    to_json,
    to_npy,
    to_safetensors,
)
from amdim_serving.errors import ItemError, RequestError
from amdim_serving.pictures import Picture
from amdim_serving.results import Embedded, EmbedResult, Timings, WindowVectors
from amdim_serving.schemas import EmbedOptions


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """A request that has been read.

    Attributes:
        outputs: As the service knows them.
        media_type: Of the answer.
    """

    pictures: Sequence[Picture]
    options: EmbedOptions
    outputs: tuple[str, ...]
    media_type: str

    def count_values(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Returns how many numbers the answer will hold, given each output's shape."""
        return len(self.pictures) * sum(math.prod(shapes[name]) for name in self.outputs)


def encode_answer(call: EmbedCall, result: EmbedResult, digests: Mapping[str, str]) -> bytes:
    """Returns the answer's body.

    Args:
        call: What was asked.
        result: What came of it; without failed images unless the answer is JSON.
        digests: The model's name, version and digests.

    Raises:
        RequestError: invalid_embedding, when a value does not fit the dtype asked for.
    """
    options = call.options
    embedded = [item for item in result.items if isinstance(item, Embedded)]
    if call.media_type == NPY:
        return to_npy([item.vectors[call.outputs[0]] for item in embedded], options.dtype)
    if call.media_type == SAFETENSORS:
        arrays = {
            name: np.stack([item.vectors[name] for item in embedded])
            for name in call.outputs
            if name != WINDOWS
        }
        metadata = {**digests, "normalized": "true" if options.normalize else "false"}
        for index, item in enumerate(embedded):
            for part in item.windows or ():
                name = f"{WINDOWS}/{index}/{part.grid.scale:g}"
                arrays[name] = part.vectors
                metadata[name] = to_json(_place(part)).decode()
        return to_safetensors(arrays, options.dtype, metadata)
    return to_json(
        {
            **digests,
            "normalized": options.normalize,
            "data": [
                _entry(index, picture.id, item, options)
                for index, (picture, item) in enumerate(
                    zip(call.pictures, result.items, strict=True)
                )
            ],
            "usage": {
                "images": len(result.items),
                "pixels": sum(item.width * item.height for item in embedded),
            },
        }
    )


def server_timing(timings: Timings) -> str:
    """Returns the Server-Timing header's value."""
    return (
        f"decode;dur={timings.decode * 1e3:.2f}, queue;dur={timings.queue * 1e3:.2f}, "
        f"infer;dur={timings.infer * 1e3:.2f}, encode;dur={timings.encode * 1e3:.2f}"
    )


def _windows(part: WindowVectors, options: EmbedOptions) -> dict[str, Any]:
    """Returns one scale's windows; numbers are nested as their shape says."""
    values = json_vectors(part.vectors, options.encoding_format, options.dtype)
    written = values if isinstance(values, dict) else {"shape": part.vectors.shape, "data": values}
    return {"scale": part.grid.scale, **written, **_place(part)}


def _place(part: WindowVectors) -> dict[str, Any]:
    return {"first_box": part.grid.first_box, "step": part.grid.step}


def _entry(
    index: int, picture_id: str | None, item: Embedded | ItemError, options: EmbedOptions
) -> dict[str, Any]:
    entry: dict[str, Any] = {"index": index}
    if picture_id is not None:
        entry["id"] = picture_id
    if isinstance(item, ItemError):
        return {**entry, "error": {"code": item.code, "message": item.message}}
    try:
        vectors = {
            name: json_vectors(array, options.encoding_format, options.dtype)
            for name, array in item.vectors.items()
        }
        if item.windows is not None:
            vectors[WINDOWS] = [_windows(part, options) for part in item.windows]
    except RequestError as error:  # a value that float16 cannot hold is this image's alone
        return {**entry, "error": {"code": error.code, "message": error.message}}
    return {**entry, **vectors}
