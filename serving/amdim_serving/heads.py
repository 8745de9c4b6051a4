"""A request's head as the routes see it, read once and carried on the ASGI scope."""

from __future__ import annotations

import itertools
import re
import secrets
from dataclasses import dataclass, field

HEAD = "amdim.head"
ROUTE = "amdim.route"


@dataclass(slots=True)
class Head:
    """What the routes need of a request's headers; on the scope under `HEAD`.

    Attributes:
        key: The API key that was sent, whether or not it opens anything.
        held_bytes: Of the body, counted against the server's bound until the request ends.
    """

    request_id: str
    content_type: bytes = b""
    content_length: int | None = None
    accept: bytes = b""
    held_bytes: int = 0
    key: bytes | None = field(default=None, repr=False)


class RequestIds:
    """Gives each request an id: its client's own where that is short and plain, else a new one."""

    _PLAIN = re.compile(rb"[A-Za-z0-9._:\-]{1,64}")

    def __init__(self) -> None:
        self._run = secrets.token_hex(4)
        self._count = itertools.count(1)

    def of(self, given: bytes | None) -> str:
        """Returns the id of a request that names `given`."""
        if given is not None and self._PLAIN.fullmatch(given):
            return given.decode("ascii")
        return f"{self._run}-{next(self._count):x}"
