"""Where vectors come from, and whether two of them may be compared.

Encoder and preprocessing must be the same; the artifact (precision, hardware) may differ, since
its certificate says how near it is. Knows no storage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from amdim_clients.errors import DigestMismatchError, IndexStoreError

SPACE_FORMAT = 1


@dataclass(frozen=True)
class VectorSpace:
    """What all vectors of one index share."""

    model: str
    output: str
    dim: int
    normalized: bool
    encoder_digest: str
    preprocess_digest: str

    def check(self, other: VectorSpace) -> None:
        """Refuse vectors that do not belong here.

        Raises:
            DigestMismatchError: `other` is of another encoder, preprocessing, output or scaling.
        """
        for field, what in (
            ("encoder_digest", "another encoder"),
            ("preprocess_digest", "another preprocessing"),
            ("output", "another output"),
            ("dim", "another size"),
            ("normalized", "another scaling"),
        ):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise DigestMismatchError(
                    f"the vectors are of {what} than the index: {theirs}, not {mine}; "
                    "index the pictures anew"
                )

    def to_json(self) -> str:
        """The space as it is kept in an index."""
        return json.dumps({"format": SPACE_FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> VectorSpace:
        """The space an index was made with.

        Raises:
            IndexStoreError: The text is none, or of a later format.
        """
        try:
            document = json.loads(text)
            if document.pop("format") != SPACE_FORMAT:
                raise IndexStoreError("the index was made by a later version of this program")
            return cls(**document)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise IndexStoreError("the index does not say where its vectors come from") from error


@dataclass(frozen=True)
class VectorOrigin:
    """The model, version and artifact that make vectors, and what it makes."""

    model: str
    version: str
    encoder_digest: str
    preprocess_digest: str
    artifact_digest: str
    normalized: bool
    outputs: Mapping[str, tuple[int, ...]]  # name -> shape of one image's output

    def space(self, output: str) -> VectorSpace:
        """The space of one flat output."""
        (dim,) = self.outputs[output]
        return VectorSpace(
            model=self.model,
            output=output,
            dim=dim,
            normalized=self.normalized,
            encoder_digest=self.encoder_digest,
            preprocess_digest=self.preprocess_digest,
        )

    def to_metadata(self) -> dict[str, str]:
        """Text pairs for the header of a vector file."""
        return {
            "amdim.model": self.model,
            "amdim.version": self.version,
            "amdim.encoder_digest": self.encoder_digest,
            "amdim.preprocess_digest": self.preprocess_digest,
            "amdim.artifact_digest": self.artifact_digest,
            "amdim.normalized": "true" if self.normalized else "false",
            "amdim.shapes": json.dumps({k: list(v) for k, v in self.outputs.items()}),
        }
