"""The server's log on stderr: lines to read, or one JSON object a line with a request's id.

Imports nothing heavy and knows no HTTP. No key, header, query or body is ever handed to a log.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any, Literal

LogFormat = Literal["text", "json"]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_FIELDS = ("request_id", "protocol", "route", "code", "seconds", "body_bytes")
"""What a record may carry beside its message."""

_access = logging.getLogger("amdim_serving.access")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        given = vars(record)
        line |= {name: given[name] for name in _FIELDS if name in given}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr(log_format: LogFormat = "text") -> None:
    """Sends the server's log lines to stderr."""
    to_stderr = logging.StreamHandler()
    text = logging.Formatter(_TEXT)
    to_stderr.setFormatter(JsonFormatter() if log_format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[to_stderr])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its start lines say less than ours
    logging.captureWarnings(True)


def log_request(
    request_id: str, *, protocol: str, route: str, code: int, seconds: float, body_bytes: int
) -> None:
    """Writes the line of one answered request.

    Args:
        request_id: As the answer says it.
        protocol: `http` or `grpc`.
        route: Its template, never a path of the client's own making.
        code: The HTTP status; gRPC's error in the same table's number.
        seconds: From its head to its answer's end.
        body_bytes: Of its body, as far as it was counted.
    """
    seconds = round(seconds, 6)
    _access.info(
        "%s %d %.1f ms",
        route,
        code,
        seconds * 1000,
        extra={
            "request_id": request_id,
            "protocol": protocol,
            "route": route,
            "code": code,
            "seconds": seconds,
            "body_bytes": body_bytes,
        },
    )
