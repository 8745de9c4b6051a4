"""uvicorn's HTTP protocol with deadlines: a connection that sends nothing does not stay for ever.

Knows bytes on a connection; no route. uvicorn by itself times only the pause between requests.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from amdim_serving.answers import error_answer
from amdim_serving.errors import RequestError
from amdim_serving.limits import Limits


class DeadlineProtocol(HttpToolsProtocol):
    """Closes connections whose head or body takes too long, with a 408 where one can be said."""

    limits = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock of the first head."""
        super().connection_made(transport)
        self._start(self.limits.header_seconds)

    def on_message_begin(self) -> None:
        """Starts the clock of a head on a connection that was idle."""
        super().on_message_begin()
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
        if self.transport.is_closing():
            return
        if not self._is_answering():
            self.transport.write(_TIMEOUT_ANSWER)
        self.transport.close()


def protocol_with(limits: Limits) -> type[DeadlineProtocol]:
    """Returns the protocol class with these limits; uvicorn makes the instances."""
    return type("LimitedProtocol", (DeadlineProtocol,), {"limits": limits})


def _timeout_answer() -> bytes:
    body = bytes(error_answer(RequestError("body_timeout")).body)
    head = (
        "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


_TIMEOUT_ANSWER = _timeout_answer()
