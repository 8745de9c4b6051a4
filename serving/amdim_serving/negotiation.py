"""Which of the types a route can produce an Accept header asks for; knows no route."""

from __future__ import annotations

from functools import lru_cache

from amdim_serving.errors import RequestError


@lru_cache(maxsize=128)
def choose_type(accept: bytes, offered: tuple[str, ...]) -> str:
    """Returns the offered media type that the header prefers; the first one when it does not say.

    Args:
        accept: The header's value; empty when absent.
        offered: In the server's order of preference.

    Raises:
        RequestError: not_acceptable.

    Source: RFC 9110, 12.5.1; of equal quality the range named first wins.
    """
    if not accept or accept == b"*/*":
        return offered[0]
    best: tuple[float, str] | None = None
    for part in accept.decode("latin-1").lower().split(","):
        media_range, *parameters = (piece.strip() for piece in part.split(";"))
        quality = _quality(parameters)
        found = next((name for name in offered if _matches(media_range, name)), None)
        if found is not None and quality > 0 and (best is None or quality > best[0]):
            best = (quality, found)
    if best is None:
        raise RequestError("not_acceptable")
    return best[1]


def _matches(media_range: str, name: str) -> bool:
    if media_range in ("*/*", name):
        return True
    return media_range.endswith("/*") and name.startswith(media_range[:-1])


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0
