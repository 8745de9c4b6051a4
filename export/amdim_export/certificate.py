"""The paper an artifact ships with: what was measured, and pictures to measure it again anywhere.

Knows how a certificate is written and read, not how vectors are made.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amdim_export.errors import CertificateError
from amdim_export.names import FORMAT
from amdim_export.parity import Agreement, Parity, Tolerance
from amdim_export.precision import CertifiedPrecision, parse_precision

CANARY_TOLERANCE = Tolerance(max_relative_error=1e-3, min_cosine=0.9999)
"""What a serving machine's kernels may differ by: wider than parity, since they are others."""

CANARY_TOLERANCES = {
    "fp32": CANARY_TOLERANCE,
    "fp16": Tolerance(max_relative_error=1e-2, min_cosine=0.999),
    "bf16": Tolerance(max_relative_error=5e-2, min_cosine=0.997),
}
"""By what an engine computes in, against vectors of float32. The shipped encoder's canaries in
PyTorch on a CPU: fp16 1.1e-3 and 0.9999990, bf16 1.0e-2 and 0.99994."""


@dataclasses.dataclass(frozen=True, slots=True)
class Canaries:
    """Pictures and the vectors they must give.

    Attributes:
        pixels: (16, S, S, 3) uint8.
        vectors: By output name, float32, one row per picture.
        tolerance: What they must hold wherever the artifact is served.
    """

    pixels: npt.NDArray[np.uint8]
    vectors: Mapping[str, npt.NDArray[np.float32]]
    tolerance: Tolerance = CANARY_TOLERANCE


@dataclasses.dataclass(frozen=True, slots=True)
class Certificate:
    """One artifact, measured.

    Attributes:
        precision: What the graph computes in.
        weights_stored: What its weights are kept as.
        parity: Against the encoder; of rounded weights, against the encoder with those weights.
        source: Which pictures were measured, in words.
        storage_loss: What rounding the weights did, against the encoder as trained.
        storage_neighbor_agreement: The same for neighbours.
        recipe: What `embedding` is, in words; empty without it.
        precisions: By name, those below fp32 that the artifact may be run at.
    """

    encoder_digest: str
    preprocess_digest: str
    artifact_digest: str
    precision: str
    weights_stored: str
    parity: Parity
    source: str
    canaries: Canaries
    created: str
    tools: Mapping[str, str]
    machine: Mapping[str, str]
    storage_loss: Mapping[str, Agreement] | None = None
    storage_neighbor_agreement: float | None = None
    recipe: str = ""
    precisions: Mapping[str, CertifiedPrecision] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """Returns the certificate as it lies beside the artifact."""
        values: dict[str, Any] = {
            "format": FORMAT,
            "encoder_digest": self.encoder_digest,
            "preprocess_digest": self.preprocess_digest,
            "artifact_digest": self.artifact_digest,
            "precision": self.precision,
            "weights_stored": self.weights_stored,
            "created": self.created,
            "tools": dict(self.tools),
            "machine": dict(self.machine),
            "recipe": self.recipe,
            "measured_on": {"images": self.parity.images, "source": self.source},
            "batches": list(self.parity.batches),
            "outputs": _agreements(self.parity.outputs),
            "neighbor_agreement_at_10": self.parity.neighbor_agreement,
        }
        if self.storage_loss is not None:
            values["storage_loss"] = {
                "outputs": _agreements(self.storage_loss),
                "neighbor_agreement_at_10": self.storage_neighbor_agreement,
            }
        if self.precisions:
            values["precisions"] = {key: one.to_json() for key, one in self.precisions.items()}
        values["tolerance"] = dataclasses.asdict(self.canaries.tolerance)
        values["canaries"] = {
            "pixels": _encode(self.canaries.pixels),
            "vectors": {name: _encode(value) for name, value in self.canaries.vectors.items()},
        }
        return json.dumps(values, indent=1) + "\n"


def read_certificate(path: Path) -> Certificate:
    """Returns a certificate from its file.

    Raises:
        CertificateError: It is missing, broken or of another format.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CertificateError(f"{path} cannot be read as JSON") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CertificateError(f"{path} is not a certificate of format {FORMAT}")
    try:
        return _parse(values)
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise CertificateError(f"{path} is missing or breaks a value: {error}") from error


def _parse(values: Mapping[str, Any]) -> Certificate:
    loss = values.get("storage_loss")
    return Certificate(
        encoder_digest=values["encoder_digest"],
        preprocess_digest=values["preprocess_digest"],
        artifact_digest=values["artifact_digest"],
        precision=values["precision"],
        weights_stored=values["weights_stored"],
        parity=Parity(
            outputs=_parse_agreements(values["outputs"]),
            neighbor_agreement=float(values["neighbor_agreement_at_10"]),
            images=int(values["measured_on"]["images"]),
            batches=tuple(int(size) for size in values["batches"]),
        ),
        source=values["measured_on"]["source"],
        canaries=Canaries(
            pixels=_decode(values["canaries"]["pixels"]),
            vectors={k: _decode(v) for k, v in values["canaries"]["vectors"].items()},
            tolerance=Tolerance(**values["tolerance"]),
        ),
        created=values["created"],
        tools=values["tools"],
        machine=values["machine"],
        storage_loss=None if loss is None else _parse_agreements(loss["outputs"]),
        storage_neighbor_agreement=None if loss is None else loss["neighbor_agreement_at_10"],
        recipe=values.get("recipe", ""),
        precisions={
            key: parse_precision(key, said) for key, said in values.get("precisions", {}).items()
        },
    )


def _agreements(outputs: Mapping[str, Agreement]) -> dict[str, dict[str, float]]:
    return {name: dataclasses.asdict(found) for name, found in outputs.items()}


def _parse_agreements(values: Mapping[str, Mapping[str, float]]) -> dict[str, Agreement]:
    return {name: Agreement(**found) for name, found in values.items()}


def _encode(array: npt.NDArray[Any]) -> dict[str, Any]:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "data": base64.b64encode(little.tobytes()).decode("ascii"),
    }


def _decode(values: Mapping[str, Any]) -> npt.NDArray[Any]:
    dtype = np.dtype(values["dtype"]).newbyteorder("<")
    data = base64.b64decode(values["data"], validate=True)
    return np.frombuffer(data, dtype=dtype).reshape(values["shape"])
