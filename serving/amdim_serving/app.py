"""Builds the HTTP application around a service.

Knows no engine and no process: `server.py` runs it, tests call it in process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from amdim_serving.answers import error_answer, from_framework
from amdim_serving.deployment import Deployment
from amdim_serving.edge import DirectRoute, Edge
from amdim_serving.errors import RequestError
from amdim_serving.gateway import Gateway, package_version
from amdim_serving.heads import HEAD
from amdim_serving.routes import embed, kserve, match, openai, page, reload, status


def create_app(deployment: Deployment) -> Edge:
    """Returns the application; its lifespan starts the service and drains it at the end.

    Args:
        deployment: Holds the gateway that each new request is given to.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with deployment.lifespan():
            yield

    app = FastAPI(
        title="amdim-embed",
        summary="Images in, AMDIM vectors out.",
        version=package_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        exception_handlers={
            RequestError: _answer_error,
            HTTPException: _answer_error,
            RequestValidationError: _answer_error,
            Exception: _answer_error,
        },
    )
    app.state.deployment = deployment
    app.include_router(embed.router)
    app.include_router(match.router)
    app.include_router(openai.router)
    app.include_router(kserve.router)
    app.include_router(reload.router)
    app.include_router(status.router)
    app.include_router(page.router)
    return Edge(app, deployment, _direct_routes)


def _direct_routes(gateway: Gateway) -> Mapping[str, DirectRoute]:
    """Returns what the edge calls past the framework, by path."""
    return {
        "/embed": embed.answer_embed,
        "/v1/embeddings": openai.answer_embeddings,
        **kserve.infer_routes(gateway),
    }


async def _answer_error(request: Request, error: Exception) -> Response:
    allow: str | None = None
    if isinstance(error, HTTPException):
        allow = (error.headers or {}).get("Allow")
        error = from_framework(error)
    elif isinstance(error, RequestValidationError):  # what FastAPI would answer as 422
        error = RequestError("bad_request")
    elif not isinstance(error, RequestError):
        error = RequestError("internal")  # the edge logs it
    head = request.scope.get(HEAD)
    request_id = None if head is None else head.request_id
    answer = error_answer(error, path=request.url.path, request_id=request_id)
    if allow is not None:
        answer.headers["Allow"] = allow
    return answer
