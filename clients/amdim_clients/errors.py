"""The clients' errors; knows nothing of what raises them (standard library only).

ClientError
|-- ImageError            the bytes are not a usable picture; `.code` is stable
|-- ContractError         a model's config or certificate is missing or breaks the contract
|-- DigestMismatchError   vectors of two encoders or two preprocessings were about to meet
|-- RegionError           a region is no rectangle, or lies outside what is seen
|-- ScaleError            scales of windows are out of range, or not those of an index
|-- SourceError           a path names nothing that can be read
|-- EngineError           no engine could be opened, or it answered against its own spec
|-- ConditionError        a filter of answers means nothing
|-- IndexStoreError       an index is missing, broken or of another shape
`-- GatewayError          a request to a server failed
    |-- TransportError    nothing answered, or the connection broke
    |-- ResponseError     the answer breaks the wire contract
    `-- ServerError       the server answered with an error; `.status`, `.code`
        `-- OverloadedError   429 or 503 on every attempt
"""

from __future__ import annotations

# The stable codes of the wire contract that a picture alone can cause, each with its only sentence.
IMAGE_MESSAGES = {
    "unsupported_media_type": "The bytes are not an image in an accepted format.",
    "image_undecodable": "The image cannot be decoded.",
    "image_truncated": "The image is cut short.",
    "image_too_small": "The image has fewer pixels on a side than allowed.",
    "too_many_pixels": "The image has more pixels than allowed.",
    "too_many_windows": "The image has more windows than allowed.",
}


class ClientError(Exception):
    """Base of everything this package raises on purpose; its text is fit to show a user."""

    exit_code: int = 1
    is_user_error = True


class ImageError(ClientError):
    """The bytes are not a usable picture.

    The message is a fixed sentence, never a decoder's own words.
    """

    def __init__(self, code: str) -> None:
        """Keep `code`, a key of `IMAGE_MESSAGES`, and its sentence."""
        super().__init__(IMAGE_MESSAGES[code])
        self.code = code
        self.message = IMAGE_MESSAGES[code]

    def __reduce__(self) -> tuple[type[ImageError], tuple[str]]:
        """Survive pickling: decode workers may be processes."""
        return type(self), (self.code,)


class ContractError(ClientError):
    """A model's config or certificate is missing or breaks the contract."""


class DigestMismatchError(ClientError):
    """Vectors of two encoders or two preprocessings were about to meet."""


class SourceError(ClientError):
    """A path names nothing that can be read."""


class EngineError(ClientError):
    """No engine could be opened, or it answered against its own spec."""


class RegionError(ClientError):
    """A region is no rectangle, or lies outside what the encoder sees."""


class ScaleError(ClientError):
    """The scales or the stride of windows are out of range, or not those of an index."""

    def __init__(
        self, message: str = "Scales are one to four different numbers from 1 to 4."
    ) -> None:
        super().__init__(message)


class ConditionError(ClientError):
    """A filter of answers means nothing."""


class IndexStoreError(ClientError):
    """An index is missing, broken or of another shape."""


class GatewayError(ClientError):
    """A request to a server failed."""


class TransportError(GatewayError):
    """Nothing answered, or the connection broke."""


class ResponseError(GatewayError):
    """The server's answer breaks the wire contract."""


class ServerError(GatewayError):
    """The server answered with an error."""

    def __init__(self, status: int, code: str, message: str, request_id: str | None = None) -> None:
        """Keep the HTTP `status`, the stable `code` and the request id for a report."""
        super().__init__(f"the server answered {status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.request_id = request_id


class OverloadedError(ServerError):
    """The server was overloaded or unavailable on every attempt."""
