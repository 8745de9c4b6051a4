"""Answers that say what went wrong, in each protocol's own shape.

Knows HTTP statuses and JSON; which error it is was decided elsewhere.
"""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from amdim_serving.encodings import JSON, to_json
from amdim_serving.errors import OverloadedError, RequestError

_FRAMEWORK_CODES = {404: "unknown_route", 405: "method_not_allowed", 406: "not_acceptable"}


def error_answer(error: RequestError, *, path: str = "", request_id: str | None = None) -> Response:
    """Returns the answer to a failed request, in the shape that its path's protocol has.

    Args:
        error: Its code, fixed sentence and, where one image is at fault, its index.
        path: Of the request.
        request_id: Said in the body, so that a report can name it.
    """
    headers: dict[str, str] = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(error.retry_after_s)
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    if error.code in ("body_too_large", "body_timeout"):
        headers["Connection"] = "close"  # what is left of the body is not read
    body = to_json(_shape(error, path, request_id))
    return Response(body, error.kind.status, headers, JSON)


def from_framework(error: HTTPException) -> RequestError:
    """Returns the table's error for one that the web framework raised."""
    if error.status_code >= 500:
        return RequestError("internal")
    return RequestError(_FRAMEWORK_CODES.get(error.status_code, "bad_request"))


def _shape(error: RequestError, path: str, request_id: str | None) -> dict[str, Any]:
    if path.startswith("/v2"):
        return {"error": error.message}
    if path.startswith("/v1/"):
        kind = "invalid_request_error" if error.kind.status < 500 else "server_error"
        return {
            "error": {"message": error.message, "type": kind, "param": None, "code": error.code}
        }
    body: dict[str, Any] = {"code": error.code, "message": error.message, "request_id": request_id}
    if error.index is not None:
        body["index"] = error.index
    return {"error": body}
