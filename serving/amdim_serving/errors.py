"""Every way a request can fail, in one table, and the errors that carry its codes.

    ServingError
    |-- StartError             the server cannot start: no model, port in use
    |   |-- ProviderError      the execution provider asked for is not the one that runs
    |   `-- CanaryError        the engine does not reproduce the certificate's vectors
    |-- EngineError            the engine failed on a batch
    |   |-- EngineDownError    an engine elsewhere does not answer
    |   |-- EngineAnswerError  it refused the batch, or answered nonsense
    |   `-- EngineTimeoutError it took too long
    `-- RequestError           a request fails with one code of the table
        |-- ItemError          one image fails; the others of its request need not
        `-- OverloadedError    no room in the queue; says when to come back

Messages are fixed sentences: no exception text, no paths, no addresses. Knows neither FastAPI nor
grpc: gRPC statuses are named, not imported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar


class ServingError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code: ClassVar[int] = 1
    is_user_error: ClassVar[bool] = True


class StartError(ServingError):
    """The server cannot start; the text says why in one sentence."""


class ProviderError(StartError):
    """The execution provider asked for is not the one the engine would run on."""


class CanaryError(StartError):
    """The engine does not reproduce the vectors its certificate vouches for.

    Args:
        said: One sentence.
        cosine: The worst one found; 0 where there was nothing to compare.
    """

    def __init__(self, said: str, *, cosine: float = 0.0) -> None:
        super().__init__(said)
        self.cosine = cosine


class EngineError(ServingError):
    """The engine failed on a batch; `code` and `status` say what that makes of its requests."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int | None] = None
    """Another HTTP status than the table's."""
    is_elsewhere: ClassVar[bool] = False
    """Whether another process is at fault, whose own log says more."""


class EngineDownError(EngineError):
    """An engine elsewhere does not answer, or is not the one that was opened."""

    code = "engine_unavailable"
    is_elsewhere = True


class EngineAnswerError(EngineError):
    """An engine elsewhere refused the batch, or its answer is not what its config says."""

    code = "engine_unavailable"
    status = 502
    is_elsewhere = True


class EngineTimeoutError(EngineError):
    """An engine elsewhere took too long for a batch."""

    code = "deadline_exceeded"
    is_elsewhere = True


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """What one code means on each wire."""

    status: int
    grpc: str
    message: str


_INVALID = "INVALID_ARGUMENT"

ERRORS: dict[str, ErrorKind] = {
    "bad_request": ErrorKind(400, _INVALID, "The request is malformed."),
    "no_images": ErrorKind(400, _INVALID, "The request holds no image."),
    "unknown_output": ErrorKind(400, _INVALID, "The model has no such output."),
    "bad_base64": ErrorKind(400, _INVALID, "The image data is not valid base64."),
    "unauthorized": ErrorKind(401, "UNAUTHENTICATED", "A valid API key is required."),
    "unknown_model": ErrorKind(404, "NOT_FOUND", "No such model is served here."),
    "unknown_route": ErrorKind(404, "UNIMPLEMENTED", "There is nothing at this path."),
    "method_not_allowed": ErrorKind(405, "UNIMPLEMENTED", "This path does not take this method."),
    "not_acceptable": ErrorKind(
        406, "UNIMPLEMENTED", "None of the accepted answer types can be produced."
    ),
    "body_timeout": ErrorKind(408, "DEADLINE_EXCEEDED", "The request arrived too slowly."),
    "reload_failed": ErrorKind(
        409, "FAILED_PRECONDITION", "The new version cannot be loaded; the old one goes on serving."
    ),
    "body_too_large": ErrorKind(413, _INVALID, "The request body is over the size limit."),
    "too_many_images": ErrorKind(413, _INVALID, "The request holds too many images."),
    "too_many_pixels": ErrorKind(413, _INVALID, "The image has more pixels than allowed."),
    "unsupported_media_type": ErrorKind(
        415, _INVALID, "The data is not an image in an accepted format."
    ),
    "too_many_windows": ErrorKind(413, _INVALID, "The image has more windows than allowed."),
    "image_undecodable": ErrorKind(422, _INVALID, "The image cannot be decoded."),
    "image_truncated": ErrorKind(422, _INVALID, "The image ends before its data does."),
    "image_too_small": ErrorKind(422, _INVALID, "The image is smaller than allowed."),
    "overloaded": ErrorKind(
        429, "RESOURCE_EXHAUSTED", "The queue is full; try again after the time given."
    ),
    "invalid_embedding": ErrorKind(500, "INTERNAL", "The model gave an unusable vector."),
    "internal": ErrorKind(500, "INTERNAL", "The server failed on this request."),
    "engine_unavailable": ErrorKind(503, "UNAVAILABLE", "The inference engine is unavailable."),
    "draining": ErrorKind(503, "UNAVAILABLE", "The server is shutting down."),
    "not_ready": ErrorKind(503, "UNAVAILABLE", "The server is not ready."),
    "deadline_exceeded": ErrorKind(504, "DEADLINE_EXCEEDED", "The request took too long."),
}


class RequestError(ServingError):
    """A request fails with one code of the table.

    Args:
        code: A key of `ERRORS`; anything else counts as `internal`.
        detail: A fixed sentence of this program's own, said instead of the table's.
        index: Which image of the request is at fault, where one is.
        status: Another HTTP status than the table's, where a code has two.
    """

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        *,
        index: int | None = None,
        status: int | None = None,
    ) -> None:
        self.code = code if code in ERRORS else "internal"
        self.kind = ERRORS[self.code]
        if status is not None:
            self.kind = replace(self.kind, status=status)
        self.message = detail or self.kind.message
        self.index = index
        super().__init__(self.code, self.message)


class ItemError(RequestError):
    """One image fails; in a request of several the others still get their vectors."""


class OverloadedError(RequestError):
    """There is no room in the queue.

    Args:
        retry_after_s: Whole seconds after which trying again makes sense.
    """

    def __init__(self, retry_after_s: int = 1) -> None:
        super().__init__("overloaded")
        self.retry_after_s = retry_after_s


def as_request_error(error: Exception) -> RequestError:
    """Returns the error itself where it is one of the table's, else `internal`."""
    return error if isinstance(error, RequestError) else RequestError("internal")
