"""uvicorn's HTTP protocol with bounds: a connection neither stays silent nor talks for ever.

Knows bytes on a connection; no route. uvicorn by itself times only the pause between requests, and
keeps heads and trailers of any size.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from amdim_serving.answers import error_answer
from amdim_serving.errors import RequestError
from amdim_serving.limits import Limits

# Of a request's head, and of what its body's chunks are wrapped in; twice what one read brings.
_MAX_WRAPPING = 512 * 1024


class DeadlineProtocol(HttpToolsProtocol):
    """Closes connections whose head or body takes too long, with a 408 where one can be said."""

    limits = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._wrapping = 0

    def data_received(self, data: bytes) -> None:
        """Counts what is no body, and ends a connection that sends too much of it."""
        super().data_received(data)
        self._wrapping += len(data)
        if self._wrapping > _MAX_WRAPPING:
            self._stop()
            self._end(_TOO_LARGE_ANSWER)

    def on_body(self, body: bytes) -> None:
        """A body may be wrapped in an eighth of its own size."""
        self._wrapping -= len(body) + len(body) // 8
        super().on_body(body)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock of the first head."""
        super().connection_made(transport)
        self._start(self.limits.header_seconds)

    def on_message_begin(self) -> None:
        """Starts the clock of a head on a connection that was idle."""
        super().on_message_begin()
        self._wrapping = 0
        if self._deadline is None:
            self._start(self.limits.header_seconds)

    def on_headers_complete(self) -> None:
        """Starts the clock of the body; the application's own comes first, and answers."""
        self._stop()
        super().on_headers_complete()
        # Only a body that has not come with its head is worth a timer.
        if self.parser.should_upgrade() is False and self._expects_body():
            self._start(self.limits.body_seconds + 1.0)

    def on_message_complete(self) -> None:
        """Stops the clock."""
        self._stop()
        self._wrapping = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _expects_body(self) -> bool:
        return any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    def _start(self, seconds: float) -> None:
        self._deadline = self.loop.call_later(seconds, self._expire)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        self._end(_TIMEOUT_ANSWER)

    def _end(self, answer: bytes) -> None:
        """Closes the connection, with an answer where none has begun."""
        if self.transport.is_closing():
            return
        if not self._is_answering():
            self.transport.write(answer)
        self.transport.close()


def protocol_with(limits: Limits) -> type[DeadlineProtocol]:
    """Returns the protocol class with these limits; uvicorn makes the instances."""
    return type("LimitedProtocol", (DeadlineProtocol,), {"limits": limits})


def _answer(error: RequestError, reason: str) -> bytes:
    body = bytes(error_answer(error).body)
    head = (
        f"HTTP/1.1 {error.kind.status} {reason}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


_TIMEOUT_ANSWER = _answer(RequestError("body_timeout"), "Request Timeout")
_TOO_LARGE_ANSWER = _answer(
    RequestError("bad_request", "The request's head is too large."), "Bad Request"
)
