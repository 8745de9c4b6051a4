"""What a request to /embed asks for, out of its query, its form or its JSON body.

Knows the wire contract's options; no service and no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from pydantic import ValidationError

from amdim_serving.bodies import split_multipart
from amdim_serving.errors import RequestError
from amdim_serving.pictures import Picture
from amdim_serving.schemas import EmbedOptions, EmbedRequest

_IMAGE_FIELDS = ("images", "image", "file")


@lru_cache(maxsize=256)
def query_options(query: bytes) -> EmbedOptions:
    """Returns the options of a query string.

    Raises:
        RequestError: bad_request.
    """
    if not query:
        return EmbedOptions()
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=64
        )
    except ValueError as error:
        raise RequestError("bad_request", "The query is malformed.") from error
    return _options(pairs, EmbedOptions())


def _options(pairs: Sequence[tuple[str, str]], base: EmbedOptions) -> EmbedOptions:
    """Returns `base` with text options over it; lists are split at commas and may repeat."""
    values: dict[str, Any] = base.model_dump(exclude_unset=True)
    seen: set[str] = set()
    for name, value in pairs:
        if name in ("outputs", "scales"):
            before = values[name] if name in seen else []
            values[name] = [*before, *(part.strip() for part in value.split(","))]
        elif name in seen:
            raise RequestError("bad_request", "An option is given twice.")
        else:
            values[name] = value
        seen.add(name)
    try:
        return EmbedOptions.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from error


def invalid(error: ValidationError) -> RequestError:
    """Returns the answer to a body that does not fit its schema; names only fields of ours."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return RequestError("bad_request", "The body is not valid JSON.")
    if first["type"] == "extra_forbidden":
        return RequestError("bad_request", "The request has an option that does not exist.")
    named = [part for part in first["loc"] if isinstance(part, str)]
    if not named:
        return RequestError("bad_request", "The body is not a JSON object.")
    if first["type"] == "missing":
        return RequestError("bad_request", f"The field {named[-1]} is missing.")
    return RequestError("bad_request", f"The value of {named[-1]} is not valid.")


def read_json(body: bytes, base: EmbedOptions) -> tuple[list[Picture], EmbedOptions]:
    """Returns a JSON body's images, and its options over those of the query.

    Raises:
        RequestError: bad_request.
    """
    try:
        request = EmbedRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from error
    given = request.model_dump(exclude_unset=True, exclude={"images"})
    options = base.model_copy(update=given)
    return [Picture(image.data, image.id) for image in request.images], options


def read_form(
    body: bytes, content_type: bytes, base: EmbedOptions
) -> tuple[list[Picture], EmbedOptions]:
    """Returns a form's images, and its other fields as options over those of the query.

    Raises:
        RequestError: bad_request.
    """
    pictures: list[Picture] = []
    pairs: list[tuple[str, str]] = []
    for part in split_multipart(body, content_type):
        if part.name in _IMAGE_FIELDS:
            pictures.append(Picture(part.data, part.filename))
        else:
            pairs.append((part.name, str(part.data, "utf-8", "replace")))
    return pictures, _options(pairs, base) if pairs else base
