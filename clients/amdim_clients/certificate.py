"""Reads the certificate that an artifact is published with.

A certificate says how near an artifact is to the eager fp32 encoder, and carries the canaries that
must reproduce wherever it serves. Knows no engine: it only holds what was measured at export.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from amdim_clients.errors import ContractError

CERTIFICATE_FILE: Final = "certificate.json"
CERTIFICATE_FORMAT: Final = 1
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_DTYPES: Final = ("uint8", "float32", "float16")


@dataclass(frozen=True)
class Tolerance:
    """What the canaries must hold on the machine that serves."""

    max_relative_error: float  # largest |a - b| over largest |b|, per output
    min_cosine: float  # per image


@dataclass(frozen=True)
class CertifiedPrecision:
    """What export says of running an artifact at one precision.

    `qualifies` is the answer to "may this be chosen without being asked for?": True where every
    target was reached on held-out pictures, False where one was missed, None where the machine
    that exported could not run the precision, so that nothing but the canaries speaks for it.
    """

    precision: str
    engine: str  # what it was, or is to be, measured with: "openvino" or "onnxruntime"
    qualifies: bool | None
    tolerance: Tolerance  # what the canaries must hold at this precision
    speedup: float | None  # over fp32 in the same engine at batch 16; None where not timed
    raw: Mapping[str, Any]  # the numbers as the document has them


@dataclass(frozen=True)
class Certificate:
    """What export measured of one artifact.

    `precisions` holds the artifact's own precision and every other one that it may be run at.
    """

    encoder_digest: str
    preprocess_digest: str
    artifact_digest: str
    precision: str
    tolerance: Tolerance
    pixels: npt.NDArray[np.uint8]  # (n, S, S, 3), the canaries
    expected: Mapping[str, npt.NDArray[np.float32]]  # output name -> (n, ...), fp32 vectors
    precisions: Mapping[str, CertifiedPrecision]
    raw: Mapping[str, Any]  # the whole document, for /model

    def at(self, precision: str) -> Certificate:
        """The same certificate for running the artifact at `precision`: its canaries' tolerance.

        Raises:
            ContractError: The artifact is not certified for it.
        """
        certified = self.precisions.get(precision)
        if certified is None:
            known = ", ".join(self.precisions)
            raise ContractError(f"the artifact is certified for {known}, not for {precision}")
        return replace(self, precision=precision, tolerance=certified.tolerance)


def read_certificate(path: Path) -> Certificate:
    """The certificate at `path`, a file or the version folder that holds it.

    Raises:
        ContractError: It is missing, is no certificate, or its canaries do not fit together.
    """
    if path.is_dir():
        path = path / CERTIFICATE_FILE
    try:
        document = json.loads(path.read_text("utf-8"))
        return _parse(document)
    except OSError as error:
        raise ContractError(f"no certificate at {path}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ContractError(f"{path} is not a certificate: {error!r}") from error


def is_digest(text: str) -> bool:
    """Whether `text` is `sha256:` and 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def _parse(document: Mapping[str, Any]) -> Certificate:
    if document["format"] != CERTIFICATE_FORMAT:
        raise ValueError(f"format {document['format']!r} is not {CERTIFICATE_FORMAT}")
    digests = {
        name: str(document[name])
        for name in ("encoder_digest", "preprocess_digest", "artifact_digest")
    }
    for name, digest in digests.items():
        if not is_digest(digest):
            raise ValueError(f"{name} is no sha256 digest")
    canaries = document["canaries"]
    pixels = _array(canaries["pixels"])
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) == 0:
        raise ValueError("canary pixels must be uint8 (n, S, S, 3)")
    expected = {
        name: _array(encoded).astype(np.float32) for name, encoded in canaries["vectors"].items()
    }
    if not expected or any(len(vectors) != len(pixels) for vectors in expected.values()):
        raise ValueError("canary vectors must have one row for each picture")
    precision, tolerance = str(document["precision"]), _tolerance(document["tolerance"])
    return Certificate(
        **digests,
        precision=precision,
        tolerance=tolerance,
        pixels=pixels,
        expected=expected,
        precisions=_precisions(document, precision, tolerance),
        raw=document,
    )


def _precisions(
    document: Mapping[str, Any], own: str, tolerance: Tolerance
) -> Mapping[str, CertifiedPrecision]:
    # fp32 has a certificate only where its parity held; anything else must say that it qualifies
    found = {
        own: CertifiedPrecision(
            own, "onnxruntime", True if own == "fp32" else None, tolerance, None, {}
        )
    }
    for name, said in document.get("precisions", {}).items():
        qualifies, speedup = said["qualifies"], said.get("speedup")
        if not (qualifies is None or isinstance(qualifies, bool)):
            raise ValueError(f"{name}: qualifies is neither true, false nor null")
        found[name] = CertifiedPrecision(
            precision=name,
            engine=str(said["engine"]),
            qualifies=qualifies,
            tolerance=_tolerance(said["tolerance"]),
            speedup=None if speedup is None else float(speedup),
            raw=said,
        )
    return MappingProxyType(found)


def _tolerance(values: Mapping[str, Any]) -> Tolerance:
    return Tolerance(float(values["max_relative_error"]), float(values["min_cosine"]))


def _array(encoded: Mapping[str, Any]) -> npt.NDArray[Any]:
    if encoded["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {encoded['dtype']!r} is not one of {_DTYPES}")
    data = base64.b64decode(encoded["data"], validate=True)
    return np.frombuffer(data, dtype=np.dtype(encoded["dtype"]).newbyteorder("<")).reshape(
        encoded["shape"]
    )
