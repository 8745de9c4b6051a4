"""Reads a request's body under its size and time limits, and takes multipart bodies apart.

Knows ASGI messages and bytes; what they mean is the routes' business. Bytes are joined at most
once, and parts are views into the body.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive

from amdim_serving.errors import OverloadedError, RequestError
from amdim_serving.heads import Head
from amdim_serving.limits import Limits


class ClientGoneError(Exception):
    """The client closed its connection before it had its answer; nobody is left to tell."""


@dataclass(slots=True)
class Part:
    """One part of a multipart body.

    Attributes:
        name: The form field's name.
        filename: As declared; only told apart from None, never trusted.
        data: A view into the body.
    """

    name: str
    filename: str | None
    data: memoryview


class BodyReader:
    """Reads bodies whole, and bounds what all of them together hold in memory.

    Args:
        limits: Of one body, of all of them, and of the time that one may take.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    async def read(self, receive: Receive, head: Head) -> bytes:
        """Returns the whole body.

        Raises:
            RequestError: body_too_large, as soon as it is known; body_timeout.
            OverloadedError: The bodies of other requests fill the server's memory.
            ClientGoneError: The connection closed half way.
        """
        declared = head.content_length
        if declared is not None and declared > self._limits.max_body_bytes:
            raise RequestError("body_too_large")
        self.hold(declared or 0, head)
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await self._read(receive, head)
        except TimeoutError as error:
            raise RequestError("body_timeout") from error

    def hold(self, size: int, head: Head) -> None:
        """Counts a request's body as `size` bytes, in place of what it counted before.

        Raises:
            OverloadedError: The bodies of other requests fill the server's memory.
        """
        more = size - head.held_bytes
        if self._held + more > self._limits.inflight_bytes:
            raise OverloadedError
        self._held += more
        head.held_bytes = size

    def release(self, head: Head) -> None:
        """Counts a request's body no longer; it has ended."""
        self._held -= head.held_bytes
        head.held_bytes = 0

    async def _read(self, receive: Receive, head: Head) -> bytes:
        chunks: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > self._limits.max_body_bytes:
                raise RequestError("body_too_large")
            if size > head.held_bytes:  # no length was declared
                self.hold(size, head)
            chunks.append(chunk)
            more = message.get("more_body", False)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def split_multipart(body: bytes, content_type: bytes) -> list[Part]:
    """Returns the parts of a multipart/form-data body, in its order.

    Raises:
        RequestError: bad_request.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise RequestError("bad_request", "The multipart body names no boundary.")
    collector = _Collector(memoryview(body))
    try:
        parser = MultipartParser(boundary, collector.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError("bad_request", "The multipart body is malformed.") from error
    if not collector.ended:
        raise RequestError("bad_request", "The multipart body is cut short.")
    return collector.parts


@dataclass(slots=True)
class _Collector:
    """Turns the parser's callbacks into parts; the body is written to it in one piece."""

    body: memoryview
    parts: list[Part] = field(default_factory=list)
    ended: bool = False
    _start: int = -1
    _end: int = -1
    _field: bytes = b""
    _value: bytes = b""
    _disposition: bytes = b""

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._start = self._end = -1
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._start < 0:
            self._start = start
        self._end = end

    def _part_end(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name, filename = options.get(b"name"), options.get(b"filename")
        if name is None:
            raise RequestError("bad_request", "A part of the multipart body has no name.")
        self.parts.append(
            Part(
                name.decode("utf-8", "replace"),
                None if filename is None else filename.decode("utf-8", "replace"),
                self.body[self._start : self._end] if self._start >= 0 else self.body[:0],
            )
        )

    def _finish(self) -> None:
        self.ended = True
