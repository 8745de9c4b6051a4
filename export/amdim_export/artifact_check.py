"""One artifact measured again: its bytes against their digest, its canaries by what serves it.

Needs no torch but for TensorRT, which borrows the GPU's memory from it. Knows no printing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amdim_export.certificate import Certificate
from amdim_export.engine_file import read_engine_facts
from amdim_export.errors import ExportError, UnavailableError
from amdim_export.fingerprint import artifact_digest
from amdim_export.names import IMAGES, MODEL_FILE
from amdim_export.openvino_precision import bf16_runs_here
from amdim_export.parity import Agreement, Encode, Tolerance, agreement, require


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked.

    Attributes:
        problem: Empty where it held.
        unmeasured: Why it could not be measured on this machine; empty where it was.
    """

    model: str
    version: int
    what: str
    problem: str = ""
    outputs: Mapping[str, Agreement] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    unmeasured: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing was found against it."""
        return not self.problem


def check_artifact(
    model: str, place: Path, config: Any, certificate: Certificate
) -> Iterator[Finding]:
    """Checks the files of one version that its configuration makes Triton load.

    Args:
        model: The model's name.
        place: The version's folder.
        config: Triton's message that describes it.
        certificate: The version's own.
    """
    version = int(place.name)
    names = list(config.cc_model_filenames.values()) or [
        config.default_model_filename or MODEL_FILE
    ]
    for name in names:
        try:
            digest = artifact_digest(place / name)
        except OSError:
            yield Finding(model, version, name, "the file is missing")
            continue
        changed = digest != certificate.artifact_digest
        problem = f"its digest is {digest}, certified was {certificate.artifact_digest}"
        yield Finding(model, version, f"{name} artifact_digest", problem if changed else "")
        yield _run_canaries(model, place, name, config.backend, certificate)
        for precision, certified in certificate.precisions.items():
            if precision != certificate.precision and certified.engine == "openvino":
                yield _run_canaries(
                    model, place, name, "openvino", certificate, precision, certified.tolerance
                )


def _run_canaries(
    model: str,
    place: Path,
    name: str,
    backend: str,
    certificate: Certificate,
    lower: str = "",
    tolerance: Tolerance | None = None,
) -> Finding:
    """Runs the canaries on what serves the artifact, or at a precision below its own."""
    canaries = certificate.canaries
    what = f"canaries at {lower}" if lower else "canaries"
    started = time.perf_counter()
    outputs: dict[str, Agreement] = {}
    problem = unmeasured = ""
    try:
        given = _open(backend, place, name, lower)(canaries.pixels)
        missing = sorted(set(canaries.vectors) - set(given))
        if missing:
            problem = f"the artifact has no output {missing[0]}"
        else:
            for output, expected in canaries.vectors.items():
                outputs[output] = agreement(expected, given[output])
            require(outputs, tolerance or canaries.tolerance)
    except UnavailableError as error:
        unmeasured = str(error)
    except ExportError as error:
        problem = str(error)
    except Exception as error:  # the runtimes' errors share no base of their own
        problem = f"{backend} cannot run it on {IMAGES}: {error}"
    seconds = time.perf_counter() - started
    return Finding(model, int(place.name), what, problem, outputs, seconds, unmeasured)


def _open(backend: str, place: Path, name: str, lower: str) -> Encode:
    """Returns an artifact as what serves it runs it.

    Raises:
        UnavailableError: That is not installed here.
        ExportError: It cannot be loaded.
    """
    if backend == "onnxruntime":
        from amdim_export.runtime import OnnxEncoder

        return OnnxEncoder(place / name)
    if backend == "openvino":
        try:
            from amdim_export.openvino_runtime import OpenVinoEncoder
        except ModuleNotFoundError as error:
            raise UnavailableError(
                "OpenVINO is not installed: pip install 'amdim-embed[openvino]'"
            ) from error
        if lower and not bf16_runs_here():
            raise UnavailableError(f"this processor does not compute in {lower}")
        return OpenVinoEncoder(place / name, compute=lower or "fp32")
    if backend == "tensorrt":
        return _open_engine(place, name)
    raise UnavailableError(f"this program does not run Triton's backend {backend!r}")


def _open_engine(place: Path, name: str) -> Encode:
    from amdim_export.tensorrt_runtime import TensorRTEncoder, missing_for_tensorrt, open_machine

    facts = read_engine_facts(place)
    facts.require_unchanged(place / name)
    missing = missing_for_tensorrt()
    if missing:
        raise UnavailableError(f"a TensorRT engine needs {'; '.join(missing)}")
    here = open_machine()
    facts.require_machine(tensorrt=here.version, sm=here.sm)
    return TensorRTEncoder(here, (place / name).read_bytes(), facts.batches)
