"""POST /embed: a raw body, a form or JSON in; JSON, .npy or safetensors out.

Translates; what becomes of an image is `EmbedService`'s business.
"""

from __future__ import annotations

import time
from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from amdim_clients.contract import WINDOWS
from amdim_clients.errors import ScaleError
from amdim_clients.windows import check_scales
from amdim_serving.embed_answer import EmbedCall, encode_answer, server_timing
from amdim_serving.embed_request import query_options, read_form, read_json
from amdim_serving.encodings import JSON, NPY, SAFETENSORS
from amdim_serving.errors import ItemError, RequestError
from amdim_serving.gateway import Gateway
from amdim_serving.heads import HEAD, Head
from amdim_serving.negotiation import choose_type
from amdim_serving.openapi import EMBED_BODY, EMBED_PARAMETERS, ERRORS_SHOWN
from amdim_serving.pictures import Picture
from amdim_serving.results import EmbedResult
from amdim_serving.schemas import EmbedAnswer, EmbedOptions
from amdim_serving.service import EmbedService
from amdim_serving.watching import DisconnectWatch

router = APIRouter(tags=["embed"])

_TYPES = (JSON, NPY, SAFETENSORS)
_JSON_BODY, _FORM_BODY = b"application/json", b"multipart/form-data"
# Bodies and answers above these are parsed and encoded off the event loop.
_BIG_BODY_BYTES = 256 * 1024
_BIG_ANSWER_VALUES = 100_000


@router.post(
    "/embed",
    summary="Embed images",
    response_model=EmbedAnswer,
    responses=ERRORS_SHOWN,
    openapi_extra={**EMBED_BODY, **EMBED_PARAMETERS},
)
async def embed(request: Request) -> Response:
    """Returns the vectors of one image (raw body) or of several (form, JSON), in their order."""
    return await answer_embed(request.state.gateway, request.scope, request.receive)


async def answer_embed(gateway: Gateway, scope: Scope, receive: Receive) -> Response:
    """Answers a request to /embed; called past the framework, for speed.

    Raises:
        RequestError: Any code of the table.
        ClientGoneError: Nobody is left to answer.
    """
    service = gateway.service
    head: Head = scope[HEAD]
    media_type = choose_type(head.accept, _TYPES)
    options = query_options(scope["query_string"])
    if _is_picture(head.content_type) and WINDOWS not in (options.outputs or ()):
        service.require_room()
    body = await gateway.bodies.read(receive, head)
    pictures, options, is_raw = await _read(service, body, head.content_type, options)
    if options.model is not None and options.model != service.spec.name:
        raise RequestError("unknown_model")
    call = EmbedCall(pictures, options, service.check_outputs(options.outputs), media_type)
    _check_combination(call)
    async with DisconnectWatch(receive):
        if WINDOWS in call.outputs:
            result = await service.embed_windows(
                pictures, call.outputs, scales=options.scales, normalize=options.normalize
            )
        else:
            result = await service.embed(pictures, call.outputs, normalize=options.normalize)
        if is_raw or options.on_error == "fail" or media_type != JSON:
            _raise_first(result, named=not is_raw)
        return await _answer(gateway, call, result)


async def _read(
    service: EmbedService, body: bytes, content_type: bytes, options: EmbedOptions
) -> tuple[list[Picture], EmbedOptions, bool]:
    """Returns the pictures, the options, and whether the body was one picture itself."""
    if _is_picture(content_type):
        return ([Picture(body)] if body else []), options, True
    if content_type.lower().startswith(_JSON_BODY):
        read = partial(read_json, body, options)
    else:
        read = partial(read_form, body, content_type, options)
    big = len(body) > _BIG_BODY_BYTES
    pictures, options = await service.run_in_thread(read) if big else read()
    return pictures, options, False


def _is_picture(content_type: bytes) -> bool:
    """Whether a body is one picture itself, whatever is declared: curl's default is a form type."""
    return not content_type.lower().startswith((_JSON_BODY, _FORM_BODY))


def _check_combination(call: EmbedCall) -> None:
    if call.options.scales is not None:
        if WINDOWS not in call.outputs:
            raise RequestError("bad_request", "The option scales is for the output windows.")
        try:
            check_scales(call.options.scales)
        except ScaleError as error:
            raise RequestError("bad_request", str(error)) from error
    if call.media_type == NPY and WINDOWS in call.outputs:
        raise RequestError("bad_request", "Windows have boxes, which an .npy file cannot hold.")
    if call.media_type == NPY and len(call.outputs) != 1:
        raise RequestError("bad_request", "An .npy answer holds exactly one output.")
    options = call.options
    as_numbers = call.media_type == JSON and options.encoding_format == "float"
    if options.dtype == "float16" and as_numbers:
        raise RequestError("bad_request", "The dtype float16 needs a binary encoding.")


def _raise_first(result: EmbedResult, *, named: bool) -> None:
    for index, item in enumerate(result.items):
        if isinstance(item, ItemError):
            raise RequestError(item.code, item.message, index=index if named else None)


async def _answer(gateway: Gateway, call: EmbedCall, result: EmbedResult) -> Response:
    started = time.perf_counter()
    service = gateway.service
    digests = gateway.digests
    if service.windows is not None and WINDOWS in call.outputs:
        digests = {**digests, "windows_artifact_digest": service.windows.spec.artifact_digest}
    encode = partial(encode_answer, call, result, digests)
    big = WINDOWS in call.outputs or call.count_values(service.spec.outputs) > _BIG_ANSWER_VALUES
    content = await service.run_in_thread(encode) if big else encode()
    result.timings.encode = time.perf_counter() - started
    service.metrics.stage("encode", result.timings.encode)
    headers = {"Server-Timing": server_timing(result.timings)}
    if call.media_type != JSON:
        headers |= gateway.digest_headers
        headers["X-Amdim-Normalized"] = "true" if call.options.normalize else "false"
    return Response(content, headers=headers, media_type=call.media_type)
