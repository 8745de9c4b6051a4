"""The metrics on a port of their own, so that what scrapes them needs no key and no other route.

Plain ASGI around the application; told apart by the port a connection came in on.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from amdim_serving.answers import error_answer
from amdim_serving.errors import RequestError
from amdim_serving.metrics import CONTENT_TYPE

_PATH = "/metrics"


class MetricsPort:
    """Answers `GET /metrics` on one port, and hides it on the others.

    Args:
        app: What answers on every other port.
        port: The metrics' own.
        render: Returns the metrics' text.
    """

    def __init__(self, app: ASGIApp, port: int, render: Callable[[], bytes]) -> None:
        self._app = app
        self._port = port
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["server"][1] != self._port:
            if scope["path"] == _PATH:
                scope = {**scope, "path": "/metrics-have-a-port-of-their-own"}
            await self._app(scope, receive, send)
        else:
            await self._answer(scope)(scope, receive, send)

    def _answer(self, scope: Scope) -> Response:
        if scope["path"] != _PATH:
            return error_answer(RequestError("unknown_route"))
        if scope["method"] not in ("GET", "HEAD"):
            return error_answer(RequestError("method_not_allowed"))
        return Response(self._render(), headers={"Content-Type": CONTENT_TYPE})
