"""Clients of an AMDIM embedding server: the image contract, requests, indexes and search.

Importing the package imports nothing else: the names below load their modules on first use.
It knows no torch and no server framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amdim_clients.contract import ModelSpec, read_model_spec
    from amdim_clients.errors import ClientError, ImageError
    from amdim_clients.gateway import AsyncEmbedClient, EmbedClient
    from amdim_clients.images import DecodedImage, ImageLimits, Preprocess, decode_image
    from amdim_clients.results import EmbedResult
    from amdim_clients.triton import AsyncTritonEncoder, TritonEncoder

_HOMES = {
    "AsyncEmbedClient": "gateway",
    "AsyncTritonEncoder": "triton",
    "ClientError": "errors",
    "DecodedImage": "images",
    "EmbedClient": "gateway",
    "EmbedResult": "results",
    "ImageError": "errors",
    "ImageLimits": "images",
    "ModelSpec": "contract",
    "Preprocess": "images",
    "TritonEncoder": "triton",
    "decode_image": "images",
    "read_model_spec": "contract",
}

__all__ = [
    "AsyncEmbedClient",
    "AsyncTritonEncoder",
    "ClientError",
    "DecodedImage",
    "EmbedClient",
    "EmbedResult",
    "ImageError",
    "ImageLimits",
    "ModelSpec",
    "Preprocess",
    "TritonEncoder",
    "decode_image",
    "read_model_spec",
]


def __getattr__(name: str) -> Any:
    """Import the module that holds `name` on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
