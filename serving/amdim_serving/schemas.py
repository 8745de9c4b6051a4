"""The JSON bodies of the wire contract, for validation at the edge and for the OpenAPI document.

Knows no service; nothing inside the server is a pydantic model.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from amdim_serving.encodings import Dtype, EncodingFormat

OnError = Literal["item", "fail"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EmbedOptions(_Strict):
    """What may be asked of /embed, in the query, the form or the JSON body."""

    model: str | None = Field(None, description="A served model; default: the default one.")
    outputs: list[str] | None = Field(
        None,
        description="Any of the model's outputs, and `windows`; default `embedding` where it has "
        "one.",
    )
    scales: list[float] | None = Field(
        None,
        description="Of `windows`: one to four numbers from 1 to 4; 1: the short side is S. "
        "Default 1 and 2.",
    )
    normalize: bool = Field(True, description="Divide each vector by its length.")
    dtype: Dtype = Field("float32", description="float16 only with a binary encoding.")
    encoding_format: EncodingFormat = Field("float", description="JSON numbers or base64.")
    on_error: OnError = Field(
        "item", description="`item`: a bad image fails alone. `fail`: it fails the request."
    )


class ImageItem(_Strict):
    """One image of a JSON request."""

    id: Annotated[str, Field(max_length=256)] | None = None
    data: str = Field(description="Base64, or a base64 data URI.", examples=["iVBORw0KGgo…"])


class EmbedRequest(EmbedOptions):
    """The JSON body of /embed."""

    images: list[ImageItem]


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str = Field(examples=["image_undecodable"])
    message: str = Field(examples=["The image cannot be decoded."])
    request_id: str | None = None
    index: int | None = Field(None, description="Which image of the request is at fault.")


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorBody


class ItemErrorBody(BaseModel):
    """Why one image of a request has no vectors."""

    code: str
    message: str


class Base64Vectors(BaseModel):
    """Vectors with `encoding_format` base64: little-endian, C order."""

    shape: list[int]
    dtype: Dtype
    data: str


class WindowsItem(BaseModel):
    """The windows of one image at one scale."""

    scale: float
    shape: list[int] = Field(description="[h, w, E].")
    dtype: Dtype | None = None
    data: list[list[list[float]]] | str
    first_box: list[float] = Field(description="Of the window at the top left, 0..1, upright.")
    step: list[float] = Field(description="To the next window to the right, and to the one below.")


class EmbeddedItem(BaseModel):
    """One image's vectors, under the names of the outputs asked for, or its error."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]

    index: int
    id: str | None = None
    embedding: list[float] | Base64Vectors | None = None
    windows: list[WindowsItem] | None = None
    error: ItemErrorBody | None = None


class Usage(BaseModel):
    """What the request held."""

    images: int
    pixels: int = Field(description="Of the pictures that were decoded, at their own size.")


class EmbedAnswer(BaseModel):
    """The JSON answer of /embed; its order is the request's."""

    model: str
    version: str
    encoder_digest: str
    preprocess_digest: str
    artifact_digest: str
    normalized: bool
    data: list[EmbeddedItem]
    usage: Usage


class StatusAnswer(BaseModel):
    """The answer of /livez and /readyz."""

    status: Literal["live", "ready"]
    unavailable: list[str] | None = Field(
        None, description="Models that fail on their canaries, while the encoder serves."
    )


class ModelAnswer(BaseModel):
    """The answer of /model."""

    default: str = Field(description="The model used where a request names none.")
    models: dict[str, dict[str, Any]]
    limits: dict[str, float]
