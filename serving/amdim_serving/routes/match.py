"""POST /match: how alike pictures are to a query, and where in each of them it is found.

Translates; the vectors come from `EmbedService`, the mathematics from `amdim_clients.matching`.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from amdim_clients.contract import GLOBAL, LOCAL5, LOCAL7
from amdim_clients.errors import RegionError
from amdim_clients.fields import PictureFrame
from amdim_clients.matching import Match, PictureFeatures, Place, WindowMatch, match_pictures
from amdim_serving.embed_answer import server_timing
from amdim_serving.encodings import JSON, to_json
from amdim_serving.errors import ItemError, RequestError
from amdim_serving.gateway import Gateway
from amdim_serving.heads import HEAD, Head
from amdim_serving.match_request import (
    MatchCall,
    MatchRequest,
    read_match_form,
    read_match_json,
)
from amdim_serving.match_windows import match_windows
from amdim_serving.openapi import ERRORS_SHOWN, form_or_json
from amdim_serving.results import Embedded, EmbedResult
from amdim_serving.service import EmbedService
from amdim_serving.watching import DisconnectWatch

router = APIRouter(tags=["match"])


@router.post(
    "/match",
    summary="Match candidates against a query",
    responses=ERRORS_SHOWN,
    openapi_extra=form_or_json(MatchRequest, files=("query", "candidates")),
)
async def match(request: Request) -> Response:
    """Returns one entry per candidate, in their order; a bad candidate fails alone."""
    gateway: Gateway = request.state.gateway
    service = gateway.service
    head: Head = request.scope[HEAD]
    body = await gateway.bodies.read(request.receive, head)
    if head.content_type.lower().startswith(b"multipart/form-data"):
        call = await service.run_in_thread(partial(read_match_form, body, head.content_type))
    else:
        call = await service.run_in_thread(partial(read_match_json, body))
    if call.options.model not in (None, service.spec.name):
        raise RequestError("unknown_model")
    outputs = tuple(dict.fromkeys((service.spec.default_output, GLOBAL, LOCAL5, LOCAL7)))
    async with DisconnectWatch(request.receive):
        result = await service.embed([call.query, *call.candidates], outputs, normalize=False)
        found = await match_windows(service, call, result) if call.options.windows else None
        started = time.perf_counter()
        content = await service.run_in_thread(partial(_encode, gateway, call, result, found))
        result.timings.encode = time.perf_counter() - started
    headers = {"Server-Timing": server_timing(result.timings)}
    return Response(content, headers=headers, media_type=JSON)


def _encode(
    gateway: Gateway,
    call: MatchCall,
    result: EmbedResult,
    windows: list[WindowMatch | ItemError] | None,
) -> bytes:
    """Returns the answer's body.

    Raises:
        RequestError: The query's own failure, or bad_request for its region.
    """
    first, *others = result.items
    if isinstance(first, ItemError):
        raise RequestError(first.code, first.message)
    query = _features(gateway.service, first)
    data = []
    for index, (picture, item) in enumerate(zip(call.candidates, others, strict=True)):
        entry: dict[str, Any] = {"index": index}
        if picture.id is not None:
            entry["id"] = picture.id
        if isinstance(item, ItemError):
            entry["error"] = {"code": item.code, "message": item.message}
        else:
            entry |= _entry(query, _features(gateway.service, item), call)
            entry |= {} if windows is None else _window(windows[index])
        data.append(entry)
    return to_json({**gateway.digests, "score": call.options.score, "data": data})


def _entry(query: PictureFeatures, candidate: PictureFeatures, call: MatchCall) -> dict[str, Any]:
    options = call.options
    try:
        found: Match = match_pictures(query, candidate, region=options.region, kind=options.score)
    except RegionError as error:
        raise RequestError("bad_request", str(error)) from error
    entry = {"cosine": found.cosine, **_place("", found.whole)}
    if found.region is not None:
        entry |= _place("region_", found.region)
    return entry


def _window(found: WindowMatch | ItemError) -> dict[str, Any]:
    """Returns a candidate's nearest window, or why only this of it is missing."""
    if isinstance(found, ItemError):
        return {"window_error": {"code": found.code, "message": found.message}}
    return {
        "window_cosine": found.cosine,
        "window_box": found.box,
        "window_scale": found.scale,
    }


def _place(prefix: str, place: Place) -> dict[str, Any]:
    return {
        f"{prefix}score": place.score,
        f"{prefix}cell": place.cell,
        f"{prefix}box": place.box,
        f"{prefix}map": place.map,
    }


def _features(service: EmbedService, item: Embedded) -> PictureFeatures:
    vectors = item.vectors
    return PictureFeatures(
        default=vectors[service.spec.default_output],
        global_=vectors[GLOBAL],
        local5=vectors[LOCAL5],
        local7=vectors[LOCAL7],
        frame=PictureFrame(item.width, item.height, service.spec.preprocess),
    )
