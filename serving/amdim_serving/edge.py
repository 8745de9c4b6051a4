"""The outermost ASGI layer: request ids, API keys, metrics, and the last word on every error.

Plain ASGI, one pass over the headers. Knows no route's meaning.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amdim_serving.answers import error_answer
from amdim_serving.bodies import ClientGoneError
from amdim_serving.errors import RequestError
from amdim_serving.gateway import Gateway
from amdim_serving.heads import HEAD, ROUTE, Head

_log = logging.getLogger(__name__)

_PLAIN_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,64}")
# The page is static and asks for the key itself.
_OPEN_PATHS = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/"})
_PAGE_FILES = "/web/"
_CLIENT_GONE = 499  # as nginx counts it; nothing is sent


DirectRoute = Callable[[Gateway, Scope, Receive], Awaitable[Response]]


class Edge:
    """Wraps the application.

    Args:
        app: Everything inside.
        gateway: Whose keys are asked for and whose metrics are kept.
        direct: POST routes by path that are called without the framework, which costs more than
            they do; the framework knows them too, and describes them.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway, direct: Mapping[str, DirectRoute]) -> None:
        self._app = app
        self._gateway = gateway
        self._direct = direct
        self._run = secrets.token_hex(4)
        self._count = itertools.count(1)
        self._metrics = gateway.service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; every way out of it is counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
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
            self._read_head(scope, head)
            direct = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
            if direct is None:
                await self._app(scope, receive, send_with_id)
            else:
                scope[ROUTE] = scope["path"]
                answer = await direct(self._gateway, scope, receive)
                await answer(scope, receive, send_with_id)
        except ClientGoneError:
            status = _CLIENT_GONE
        except Exception as raised:
            if not isinstance(raised, RequestError):
                _log.exception("request %s failed", head.request_id)
            if is_complete:
                return  # the framework has answered, and handed the exception on
            if status:
                raise  # half an answer is out: the server closes the connection
            error = raised if isinstance(raised, RequestError) else RequestError("internal")
            answer = error_answer(error, path=scope["path"], request_id=head.request_id)
            await answer(scope, receive, send_with_id)
        finally:
            self._gateway.bodies.release(head)
            spent_s = time.perf_counter() - started
            self._metrics.request(_route(scope), status or _CLIENT_GONE, spent_s)

    def lifespan(self) -> AbstractAsyncContextManager[None]:
        """The gateway's start and end, for who calls this without a server."""
        return self._gateway.lifespan()

    def _read_head(self, scope: Scope, head: Head) -> None:
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
        if request_id is not None and _PLAIN_ID.fullmatch(request_id):
            head.request_id = request_id.decode()
        else:
            head.request_id = f"{self._run}-{next(self._count):x}"
        scope[HEAD] = head
        if not self._is_open(scope["path"]) and not self._gateway.is_authorized(key):
            raise RequestError("unauthorized")
        if encoded:
            raise RequestError("unsupported_media_type", "A Content-Encoding is not accepted.")

    def _is_open(self, path: str) -> bool:
        if path in _OPEN_PATHS or path.startswith(_PAGE_FILES):
            return True
        return path == "/metrics" and self._gateway.settings.public_metrics


def _route(scope: Scope) -> str:
    """Returns the route's template; never a path of the client's own making."""
    direct: str | None = scope.get(ROUTE)
    if direct is not None:
        return direct
    route: Any = scope.get("route")
    return getattr(route, "path", "unmatched")
