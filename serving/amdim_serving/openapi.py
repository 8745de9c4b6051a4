"""What the OpenAPI document says of bodies and errors that FastAPI cannot read off the code.

The hot routes read their bodies themselves; this is their documentation, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from amdim_serving.errors import ERRORS
from amdim_serving.schemas import EmbedOptions, EmbedRequest, ErrorAnswer

_BINARY = {"type": "string", "format": "binary"}


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema without `$defs`, its references replaced by what they name."""
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(definitions[node["$ref"].rsplit("/", 1)[1]])
            return {key: resolve(value) for key, value in node.items()}
        if isinstance(node, list):
            return [resolve(value) for value in node]
        return node

    resolved: dict[str, Any] = resolve(schema)
    return resolved


_LISTS = {"outputs": "embedding,local7", "scales": "1,2"}  # comma-separated in a query
_OPTIONS = _inline(EmbedOptions.model_json_schema())["properties"]

EMBED_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _BINARY},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": _BINARY}, **_OPTIONS},
                    "required": ["images"],
                }
            },
            "application/json": {
                "schema": _inline(EmbedRequest.model_json_schema()),
                "example": {
                    "images": [{"id": "a", "data": "<base64 or data: URI>"}],
                    "outputs": ["embedding"],
                    "encoding_format": "base64",
                },
            },
        },
    }
}

EMBED_PARAMETERS: dict[str, Any] = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.get("description", ""),
            "schema": {"type": "string"} if name in _LISTS else schema,
            **({"example": _LISTS[name]} if name in _LISTS else {}),
        }
        for name, schema in _OPTIONS.items()
    ]
}


def form_or_json(schema: type[BaseModel], *, files: Sequence[str]) -> dict[str, Any]:
    """Returns what a route's `openapi_extra` says of a body that is a form or JSON.

    Args:
        schema: Of the JSON body.
        files: Its fields that a form carries as files.
    """
    described = _inline(schema.model_json_schema())
    as_files = {name: _BINARY for name in files}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {**described["properties"], **as_files},
                        "required": list(files),
                    }
                },
                "application/json": {"schema": described},
            },
        }
    }


def _codes(status: int) -> str:
    return ", ".join(code for code, kind in ERRORS.items() if kind.status == status)


ERRORS_SHOWN: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": _codes(status)}
    for status in sorted({kind.status for kind in ERRORS.values()})
}
