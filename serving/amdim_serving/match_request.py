"""What a request to /match asks for, out of its form or its JSON body.

Knows the wire contract's options; no service and no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amdim_clients.errors import ScaleError
from amdim_clients.fields import Box
from amdim_clients.windows import check_scales
from amdim_serving.bodies import split_multipart
from amdim_serving.embed_request import invalid
from amdim_serving.errors import RequestError
from amdim_serving.pictures import Picture
from amdim_serving.schemas import ImageItem

ScoreName = Literal["amdim", "cosine"]


class MatchOptions(BaseModel):
    """What may be asked of /match, in the form or the JSON body."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    score: ScoreName = Field("amdim", description="The trained score, or the cosine.")
    region: Box | None = Field(
        None, description="Part of the query, x0, y0, x1, y1 in 0..1 of the upright picture."
    )
    windows: bool = Field(
        False, description="Also find the window of each candidate that is nearest to the query."
    )
    scales: list[float] | None = Field(
        None, description="Of the windows; one to four numbers from 1 to 4. Default 1 and 2."
    )


class MatchRequest(MatchOptions):
    """The JSON body of /match."""

    query: ImageItem
    candidates: list[ImageItem]


@dataclass(frozen=True, slots=True)
class MatchCall:
    """A request that has been read."""

    query: Picture
    candidates: list[Picture]
    options: MatchOptions


def read_match_json(body: bytes) -> MatchCall:
    """Reads a JSON body.

    Raises:
        RequestError: bad_request, no_images.
    """
    try:
        request = MatchRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from error
    candidates = [Picture(image.data, image.id) for image in request.candidates]
    return _checked(Picture(request.query.data, request.query.id), candidates, request)


def read_match_form(body: bytes, content_type: bytes) -> MatchCall:
    """Reads a form with one part `query` and one or more parts `candidates`.

    Raises:
        RequestError: bad_request, no_images.
    """
    queries: list[Picture] = []
    candidates: list[Picture] = []
    values: dict[str, object] = {}
    for part in split_multipart(body, content_type):
        if part.name == "query":
            queries.append(Picture(part.data, part.filename))
        elif part.name == "candidates":
            candidates.append(Picture(part.data, part.filename))
        elif part.name in values:
            raise RequestError("bad_request", "An option is given twice.")
        else:
            text = str(part.data, "utf-8", "replace")
            values[part.name] = text.split(",") if part.name in ("region", "scales") else text
    if len(queries) != 1:
        raise RequestError("no_images", "The request must hold exactly one query.")
    try:
        options = MatchOptions.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from error
    return _checked(queries[0], candidates, options)


def _checked(query: Picture, candidates: list[Picture], options: MatchOptions) -> MatchCall:
    if not candidates:
        raise RequestError("no_images", "The request holds no candidate.")
    if options.scales is not None:
        if not options.windows:
            raise RequestError("bad_request", "The option scales is for windows.")
        try:
            check_scales(options.scales)
        except ScaleError as error:
            raise RequestError("bad_request", str(error)) from error
    return MatchCall(query, candidates, options)
