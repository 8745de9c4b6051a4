"""Health, metrics and the model's description."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from amdim_serving.answers import error_answer
from amdim_serving.encodings import JSON, to_json
from amdim_serving.errors import RequestError
from amdim_serving.gateway import Gateway
from amdim_serving.heads import HEAD
from amdim_serving.metrics import CONTENT_TYPE
from amdim_serving.openapi import ERRORS_SHOWN
from amdim_serving.schemas import ModelAnswer, StatusAnswer

router = APIRouter(tags=["status"])

_UNREADY = {
    "draining": RequestError("draining"),
    "engine": RequestError("not_ready", "The engine does not reproduce its canaries."),
}


@router.get("/livez", summary="Whether the process is up", response_model=StatusAnswer)
async def livez() -> Response:
    """Always 200 while the event loop runs."""
    return Response(to_json({"status": "live"}), media_type=JSON)


@router.get(
    "/readyz",
    summary="Whether the server may get work",
    response_model=StatusAnswer,
    responses={503: ERRORS_SHOWN[503]},
)
async def readyz(request: Request) -> Response:
    """200 once the canaries reproduced and while the engine answers; 503 says why not.

    `unavailable` names a model that is refused while the encoder serves.
    """
    gateway: Gateway = request.state.gateway
    reason = await gateway.why_unready()
    if reason is not None:
        head = request.scope[HEAD]
        return error_answer(_UNREADY[reason], request_id=head.request_id)
    refused = gateway.unavailable
    said = {"status": "ready", **({"unavailable": refused} if refused else {})}
    return Response(to_json(said), media_type=JSON)


@router.get("/metrics", summary="Metrics in Prometheus' text format", response_class=Response)
async def metrics(request: Request) -> Response:
    """Every metric of this process."""
    gateway: Gateway = request.state.gateway
    return Response(gateway.service.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


@router.get("/model", summary="What is served", response_model=ModelAnswer)
async def model(request: Request) -> Response:
    """Spec, engine, precision, digests and certificate of each model, and the limits."""
    gateway: Gateway = request.state.gateway
    described: dict[str, Any] = gateway.describe()
    return Response(to_json(described), media_type=JSON)
