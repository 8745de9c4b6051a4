"""A request's head as the routes see it, read once and carried on the ASGI scope."""

from __future__ import annotations

from dataclasses import dataclass

HEAD = "amdim.head"
ROUTE = "amdim.route"


@dataclass(slots=True)
class Head:
    """What the routes need of a request's headers; on the scope under `HEAD`.

    Attributes:
        held_bytes: Of the body, counted against the server's bound until the request ends.
    """

    request_id: str
    content_type: bytes = b""
    content_length: int | None = None
    accept: bytes = b""
    held_bytes: int = 0
