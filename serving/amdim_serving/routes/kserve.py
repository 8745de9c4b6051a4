"""KServe v2 over REST, with Triton's extensions: binary tensors, config, statistics, repository.

Translates; the tensors' meaning is in `kserve.py`, the work in `EmbedService`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from amdim_serving.edge import DirectRoute
from amdim_serving.encodings import JSON, to_json
from amdim_serving.gateway import Gateway, package_version
from amdim_serving.heads import HEAD, Head
from amdim_serving.kserve import (
    PLATFORM,
    REST_EXTENSIONS,
    SERVER_NAME,
    KServeModel,
    TensorInfo,
    find_model,
    model_state,
    requested_outputs,
    served_models,
    triton_json,
)
from amdim_serving.kserve_wire import encode_answer, parse_request
from amdim_serving.stats import Duration, ModelStats
from amdim_serving.watching import DisconnectWatch

router = APIRouter(prefix="/v2", tags=["KServe v2"])

_MODEL = "/models/{model}"
_VERSION = "/models/{model}/versions/{version}"


def infer_routes(gateway: Gateway) -> dict[str, DirectRoute]:
    """Returns the infer routes of what is served, to be called past the framework."""
    routes: dict[str, DirectRoute] = {}
    for model in served_models(gateway):
        answer = partial(answer_infer, model)
        routes[f"/v2/models/{model.name}/infer"] = answer
        routes[f"/v2/models/{model.name}/versions/{model.spec.version}/infer"] = answer
    return routes


async def answer_infer(
    model: KServeModel, gateway: Gateway, scope: Scope, receive: Receive
) -> Response:
    """Answers an infer request to a model.

    Raises:
        RequestError: Any code of the table.
        ClientGoneError: Nobody is left to answer.
    """
    service = gateway.service
    head: Head = scope[HEAD]
    header_length = dict(scope["headers"]).get(b"inference-header-content-length")
    body = await gateway.bodies.read(receive, head)
    call = await service.run_in_thread(lambda: parse_request(model, body, header_length))
    outputs = requested_outputs(model.spec, [name for name, _ in call.outputs])
    async with DisconnectWatch(receive):
        arrays = await model.encode(call.images, outputs)
        content, length = await service.run_in_thread(lambda: encode_answer(model, call, arrays))
    if length is None:
        return Response(content, media_type=JSON)
    headers = {"Inference-Header-Content-Length": str(length)}
    return Response(content, headers=headers, media_type="application/octet-stream")


@router.post(_MODEL + "/infer", summary="Encode pixels or files")
@router.post(_VERSION + "/infer", summary="Encode with a version")
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Tensors in and out, as JSON or binary; vectors are never normalised here."""
    gateway: Gateway = request.state.gateway
    found = find_model(gateway, model, version)
    return await answer_infer(found, gateway, request.scope, request.receive)


@router.get("", summary="The server")
async def server() -> Response:
    """Name, version and extensions."""
    return _json(
        {"name": SERVER_NAME, "version": package_version(), "extensions": list(REST_EXTENSIONS)}
    )


@router.get("/health/live", summary="Whether the process is up")
async def live() -> Response:
    """200 while the event loop runs."""
    return Response(status_code=200)


@router.get("/health/ready", summary="Whether the server may get work")
async def ready(request: Request) -> Response:
    """200 or 503, as /readyz."""
    gateway: Gateway = request.state.gateway
    return Response(status_code=503 if await gateway.why_unready() else 200)


# Before the routes of one model, which would take "stats" for its name.
@router.get("/models/stats", summary="Every model's statistics")
@router.get(_MODEL + "/stats", summary="A model's statistics")
@router.get(_VERSION + "/stats", summary="A version's statistics")
async def stats(request: Request, model: str | None = None, version: str | None = None) -> Response:
    """What was computed, counted as Triton counts it."""
    gateway: Gateway = request.state.gateway
    found = [find_model(gateway, model, version)] if model else served_models(gateway)
    return _json(
        {
            "model_stats": [
                {"name": one.name, "version": one.spec.version, **_stats(one.stats)}
                for one in found
            ]
        }
    )


@router.get(_MODEL, summary="A model's tensors")
@router.get(_VERSION, summary="A version's tensors")
async def metadata(request: Request, model: str, version: str | None = None) -> Response:
    """Names, types and shapes."""
    found = find_model(request.state.gateway, model, version)
    return _json(
        {
            "name": found.name,
            "versions": [found.spec.version],
            "platform": PLATFORM,
            "inputs": [_tensor(found.input)],
            "outputs": [_tensor(info) for info in found.outputs],
        }
    )


@router.get(_MODEL + "/ready", summary="Whether a model may get work")
@router.get(_VERSION + "/ready", summary="Whether a version may get work")
async def model_ready(request: Request, model: str, version: str | None = None) -> Response:
    """200 or 503: as /readyz, and the model's own."""
    gateway: Gateway = request.state.gateway
    found = find_model(gateway, model, version)
    return Response(status_code=200 if await gateway.is_model_ready(found.name) else 503)


@router.get(_MODEL + "/config", summary="A model's Triton config")
@router.get(_VERSION + "/config", summary="A version's Triton config")
async def config(request: Request, model: str, version: str | None = None) -> Response:
    """The config.pbtxt as JSON, in Triton's own field names."""
    gateway: Gateway = request.state.gateway
    return _json(triton_json(find_model(gateway, model, version).config))


@router.post("/repository/index", summary="The models served")
async def index(request: Request) -> Response:
    """Name, version and state of each."""
    gateway: Gateway = request.state.gateway
    return _json(
        [
            {
                "name": model.name,
                "version": model.spec.version,
                "state": model_state(gateway, model),
                "reason": "",
            }
            for model in served_models(gateway)
        ]
    )


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type=JSON)


def _tensor(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "datatype": info.datatype, "shape": info.shape}


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}


def _stats(seen: ModelStats) -> dict[str, Any]:
    nothing = _duration(Duration())
    return {
        "last_inference": seen.last_inference_ms,
        "inference_count": seen.inference_count,
        "execution_count": seen.execution_count,
        "inference_stats": {
            "success": _duration(seen.success),
            "fail": _duration(seen.fail),
            "queue": _duration(seen.queue),
            "compute_input": _duration(seen.compute_input),
            "compute_infer": _duration(seen.compute_infer),
            "compute_output": _duration(seen.compute_output),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": {"count": spent.count, "ns": 0},
                "compute_infer": _duration(spent),
                "compute_output": {"count": spent.count, "ns": 0},
            }
            for size, spent in sorted(seen.batches.items())
        ],
    }
