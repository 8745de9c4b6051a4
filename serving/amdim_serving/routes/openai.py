"""POST /v1/embeddings and GET /v1/models, in OpenAI's shapes, for images as data URIs.

Translates; what becomes of an image is `EmbedService`'s business.
"""

from __future__ import annotations

import base64
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from amdim_serving.embed_answer import server_timing
from amdim_serving.embed_request import invalid
from amdim_serving.encodings import JSON, to_json
from amdim_serving.errors import ItemError, RequestError
from amdim_serving.gateway import Gateway
from amdim_serving.heads import HEAD, Head
from amdim_serving.pictures import Picture
from amdim_serving.watching import DisconnectWatch

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_BIG_BODY_BYTES = 256 * 1024
_ONLY_IMAGES = "Only images are embedded here, given as data URIs; text is not."


class ImageInput(BaseModel):
    """An image of a request, as an object."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(examples=["data:image/jpeg;base64,…"])


Input = str | ImageInput


class EmbeddingsRequest(BaseModel):
    """The body of /v1/embeddings; what OpenAI's clients send beside it is ignored."""

    input: Input | list[Input | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    modality: Literal["image"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["input"]},
                "example": {"model": "amdim", "input": ["data:image/jpeg;base64,…"]},
            }
        },
    }
}


@router.post("/embeddings", summary="Embed images", openapi_extra=_BODY)
async def embeddings(request: Request) -> Response:
    """The model's default vectors, each of unit length."""
    return await answer_embeddings(request.state.gateway, request.scope, request.receive)


async def answer_embeddings(gateway: Gateway, scope: Scope, receive: Receive) -> Response:
    """Answers a request to /v1/embeddings; called past the framework, for speed.

    Raises:
        RequestError: Any code of the table; a bad image fails the request.
        ClientGoneError: Nobody is left to answer.
    """
    service = gateway.service
    head: Head = scope[HEAD]
    body = await gateway.bodies.read(receive, head)
    read = partial(_read, body, service.spec.name)
    big = len(body) > _BIG_BODY_BYTES
    pictures, as_base64 = await service.run_in_thread(read) if big else read()
    outputs = service.check_outputs(None)
    async with DisconnectWatch(receive):
        result = await service.embed(pictures, outputs)
    data = []
    for index, item in enumerate(result.items):
        if isinstance(item, ItemError):
            raise RequestError(item.code, item.message, index=index)
        vector = item.vectors[outputs[0]]
        embedding = _base64(vector) if as_base64 else vector
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    content = to_json(
        {
            "object": "list",
            "data": data,
            "model": service.spec.name,
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
        }
    )
    headers = {"Server-Timing": server_timing(result.timings), **gateway.digest_headers}
    return Response(content, headers=headers, media_type=JSON)


@router.get("/models", summary="The models served")
async def models(request: Request) -> Response:
    """A list of one."""
    gateway: Gateway = request.state.gateway
    answer = {"object": "list", "data": [_model(gateway)]}
    return Response(to_json(answer), media_type=JSON)


@router.get("/models/{model}", summary="One model")
async def model(request: Request, model: str) -> Response:
    """That model, when it is served."""
    gateway: Gateway = request.state.gateway
    if model != gateway.service.spec.name:
        raise RequestError("unknown_model")
    return Response(to_json(_model(gateway)), media_type=JSON)


def _model(gateway: Gateway) -> dict[str, Any]:
    name = gateway.service.spec.name
    return {"id": name, "object": "model", "created": 0, "owned_by": "amdim-embed"}


def _read(body: bytes, served: str) -> tuple[list[Picture], bool]:
    """Returns the pictures of a body, and whether base64 is wanted."""
    try:
        request = EmbeddingsRequest.model_validate_json(body)
    except ValidationError as error:
        if error.errors()[0]["loc"][:1] == ("input",):
            raise RequestError("bad_request", _ONLY_IMAGES) from error
        raise invalid(error) from error
    if request.dimensions is not None:
        raise RequestError("bad_request", "The dimensions of these vectors cannot be chosen.")
    if request.model is not None and request.model != served:
        raise RequestError("unknown_model")
    inputs = request.input if isinstance(request.input, list) else [request.input]
    pictures = [_picture(item) for item in inputs]
    return pictures, request.encoding_format == "base64"


def _picture(item: object) -> Picture:
    data = item.image if isinstance(item, ImageInput) else item
    if not isinstance(data, str) or not data.startswith("data:"):
        raise RequestError("bad_request", _ONLY_IMAGES)
    return Picture(data)


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4", copy=False).data).decode("ascii")
