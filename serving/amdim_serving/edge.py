"""The outermost ASGI layer: request ids, API keys, metrics, and the last word on every error.

Plain ASGI, one pass over the headers. Knows no route's meaning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amdim_serving.answers import error_answer
from amdim_serving.bodies import ClientGoneError
from amdim_serving.deployment import Deployment
from amdim_serving.errors import RequestError, as_request_error
from amdim_serving.gateway import Gateway
from amdim_serving.heads import HEAD, ROUTE, Head, RequestIds
from amdim_serving.logs import log_request

_log = logging.getLogger(__name__)

# The page is static and asks for the key itself.
_OPEN_PATHS = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/"})
_PAGE_FILES = "/web/"
_CLIENT_GONE = 499  # as nginx counts it; nothing is sent


DirectRoute = Callable[[Gateway, Scope, Receive], Awaitable[Response]]


class Edge:
    """Wraps the application.

    Args:
        app: Everything inside.
        deployment: Holds the gateway that a request is given to, and belongs to until it ends.
        direct: Returns a gateway's POST routes by path that are called without the framework,
            which costs more than they do; the framework knows them too, and describes them.
    """

    def __init__(
        self,
        app: ASGIApp,
        deployment: Deployment,
        direct: Callable[[Gateway], Mapping[str, DirectRoute]],
    ) -> None:
        self._app = app
        self._deployment = deployment
        self._direct_of = direct
        self._gateway = deployment.current
        self._direct = direct(self._gateway)
        self._ids = RequestIds()
        self._logs_requests = deployment.current.settings.access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; every way out of it is counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        gateway = self._deployment.current
        if gateway is not self._gateway:
            self._gateway, self._direct = gateway, self._direct_of(gateway)
        gateway.requests += 1
        scope.setdefault("state", {})["gateway"] = gateway
        status = 0
        is_complete = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, is_complete
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", head.request_id.encode()),
                ]
            else:
                is_complete = not message.get("more_body", False)
            await send(message)

        head = Head("")
        try:
            self._read_head(gateway, scope, head)
            direct = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
            if direct is None:
                await self._app(scope, receive, send_with_id)
            else:
                scope[ROUTE] = scope["path"]
                answer = await direct(gateway, scope, receive)
                await answer(scope, receive, send_with_id)
        except ClientGoneError:
            status = _CLIENT_GONE
        except Exception as raised:
            if not isinstance(raised, RequestError):
                _log.exception(
                    "request %s failed", head.request_id, extra={"request_id": head.request_id}
                )
            if is_complete:
                return  # the framework has answered, and handed the exception on
            if status:
                raise  # half an answer is out: the server closes the connection
            # No variable holds the error: its traceback holds this frame, which holds the body, and
            # a circle of the two would stay until the next collection.
            answer = error_answer(
                as_request_error(raised), path=scope["path"], request_id=head.request_id
            )
            await answer(scope, receive, send_with_id)
        finally:
            route, code = _route(scope), status or _CLIENT_GONE
            spent_s = time.perf_counter() - started
            gateway.metrics.request(route, code, spent_s)
            if self._logs_requests:
                log_request(
                    head.request_id,
                    protocol="http",
                    route=route,
                    code=code,
                    seconds=spent_s,
                    body_bytes=head.held_bytes,
                )
            gateway.bodies.release(head)
            gateway.requests -= 1

    def lifespan(self) -> AbstractAsyncContextManager[None]:
        """The deployment's start and end, for who calls this without a server."""
        return self._deployment.lifespan()

    def _read_head(self, gateway: Gateway, scope: Scope, head: Head) -> None:
        """Reads the headers that matter, in one pass.

        Raises:
            RequestError: unauthorized; unsupported_media_type for a Content-Encoding.
        """
        request_id = key = None
        encoded = False
        for name, value in scope["headers"]:
            if name == b"content-type":
                head.content_type = value
            elif name == b"content-length":
                head.content_length = int(value) if value.isdigit() else None
            elif name == b"accept":
                head.accept = value
            elif name == b"x-request-id":
                request_id = value
            elif name == b"x-api-key":
                key = value
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                key = value[7:].strip()
            elif name == b"content-encoding":
                encoded = value.lower() != b"identity"
        head.request_id = self._ids.of(request_id)
        head.key = key
        scope[HEAD] = head
        if not _is_open(gateway, scope["path"]) and not gateway.is_authorized(key):
            raise RequestError("unauthorized")
        if encoded:
            raise RequestError("unsupported_media_type", "A Content-Encoding is not accepted.")


def _is_open(gateway: Gateway, path: str) -> bool:
    """Whether a path is answered without a key."""
    if path in _OPEN_PATHS or path.startswith(_PAGE_FILES):
        return True
    return path == "/metrics" and gateway.settings.public_metrics


def _route(scope: Scope) -> str:
    """Returns the route's template; never a path of the client's own making."""
    direct: str | None = scope.get(ROUTE)
    if direct is not None:
        return direct
    route: Any = scope.get("route")
    return getattr(route, "path", "unmatched")
