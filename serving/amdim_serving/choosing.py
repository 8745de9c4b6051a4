"""Which engine serves at which precision: the one that is named, else the fastest certified one.

What is fastest differs between CPUs, so it is measured on the one that serves, before it serves.
Knows the settings and how engines are opened; no HTTP and no batching.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np

from amdim_clients.contract import CertifiedPrecision, ModelSpec
from amdim_serving.engines import Engine, EngineInfo
from amdim_serving.errors import CanaryError, EngineError, StartError
from amdim_serving.opening import (
    CPU_PROVIDER,
    Artifact,
    LocalEngineName,
    OpenModel,
    Tried,
    WindowsModel,
    open_model,
    read_artifact,
    with_beside,
)
from amdim_serving.settings import Settings

_log = logging.getLogger(__name__)

# Trying ends here, so that starting stays quick; what is left over is said.
_BUDGET_S = 1.2
_TIMED_S = 0.06
_LEAST_RUNS = 3
# A lower precision has to be so much faster, or it is not worth what it costs.
_WORTH = 1.2
# The order of trying, which decides where the time runs out: on a busy machine after the first.
# ONNX Runtime multiplies int8 slower than float (benchmarks/precision.py).
_PROMISING: tuple[tuple[LocalEngineName, str], ...] = (
    ("openvino", "int8"),
    ("openvino", "bf16"),
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("onnxruntime", "int8"),
)
# From the nearest to the trained vectors to the furthest.
_PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way of serving the model."""

    artifact: Artifact
    engine: LocalEngineName
    precision: str


@dataclass(frozen=True, slots=True)
class _Opened:
    candidate: Candidate
    engine: Engine
    cosine: float
    images_per_s: float


def open_engine(settings: Settings, *, before: EngineInfo | None = None) -> OpenModel:
    """Opens the model that the settings name, and says in the log what was chosen and why.

    Args:
        settings: Engine and precision are named outright, or `auto`.
        before: What served until now: taken again, unmeasured, where it may still be chosen.

    Raises:
        StartError: It cannot be served so; the text says why.
    """
    if settings.engine == "triton":
        from amdim_serving.remote import open_remote_model  # gRPC is imported where it is used

        return open_remote_model(
            settings.repository(),
            settings.triton(settings.model),
            precision=None if settings.precision == "auto" else settings.precision,
            in_flight=settings.triton_in_flight,
        )
    candidates = list_candidates(settings)
    if before is not None:
        kept = [one for one in candidates if _is(one, before)]
        candidates = kept or candidates
    best, tried = _choose(settings, candidates)
    artifact = best.candidate.artifact
    opened = OpenModel(
        best.engine,
        artifact.certificate.at(best.candidate.precision),
        best.cosine,
        artifact.config,
        tried=tried,
    )
    return with_beside(opened, artifact, threads=settings.threads)


def open_windows(settings: Settings, encoder: ModelSpec) -> WindowsModel | None:
    """Opens the windows model of an encoder, at fp32 with the engine that the settings name.

    Args:
        settings: Say where; ONNX Runtime where they leave the engine open.
        encoder: What serves; windows of another encoder do not meet its vectors.

    Returns:
        None where there is none, or it is of another encoder, which the log says.

    Raises:
        StartError: It is there and cannot be served.
    """
    name = f"{settings.model}_windows"
    if not (settings.repository() / name).is_dir():
        return None
    if settings.engine == "triton":
        from amdim_serving.remote import open_remote_model  # gRPC is imported where it is used

        target = replace(settings.triton(name), connect_s=0.0)
        try:
            opened = open_remote_model(
                settings.repository(), target, in_flight=settings.triton_in_flight
            )
        except CanaryError:
            raise
        except StartError as error:
            _log.warning("no windows: %s", error)
            return None
    else:
        opened = open_model(
            settings.repository(),
            name,
            engine_name="openvino" if settings.engine == "openvino" else "onnxruntime",
            provider=settings.provider,
            threads=settings.threads,
        )
    spec = opened.engine.spec
    if not spec.gives_windows or spec.encoder_digest != encoder.encoder_digest:
        opened.engine.close()
        _log.warning("%s is of another encoder than %s: no windows", name, settings.model)
        return None
    return WindowsModel(opened.engine, opened.certificate, opened.canary_cosine, opened.config)


def settle(settings: Settings) -> Settings:
    """Returns the settings with engine and precision named, for several processes to share.

    Raises:
        StartError: Nothing can serve; the text says why.
    """
    if settings.engine == "triton" or "auto" not in (settings.engine, settings.precision):
        return settings
    best, _ = _choose(settings, list_candidates(settings))
    best.engine.close()
    named = {"engine": best.candidate.engine, "precision": best.candidate.precision}
    return settings.model_copy(update=named)


def list_candidates(settings: Settings) -> list[Candidate]:
    """Returns what the settings allow, the most promising first.

    Raises:
        StartError: The model is not there, or nothing that is allowed is certified.
    """
    repository, name = settings.repository(), settings.model
    own = read_artifact(repository, name, settings.model_version)
    artifacts = [own]
    if own.spec.precision == "fp32" and (repository / f"{name}_int8").is_dir():
        other = read_artifact(repository, f"{name}_int8")
        if _is_same_encoder(own, other):
            artifacts.append(_as_the_same_model(other, own))
        else:
            _log.warning("%s_int8 is of another encoder than %s: not served", name, name)
    found = [
        Candidate(artifact, engine, certified.precision)
        for artifact in artifacts
        for certified in artifact.certificate.precisions.values()
        for engine in _engines(settings)
        if _is_allowed(settings, certified) and _runs(engine, artifact, certified.precision)
    ]
    if not found:
        raise StartError(_why_none(settings, artifacts))
    return sorted(found, key=_promise)


def _promise(one: Candidate) -> int:
    """The place of a candidate in the order of trying; what is unknown comes last."""
    way = (one.engine, one.precision)
    return _PROMISING.index(way) if way in _PROMISING else len(_PROMISING)


def _choose(
    settings: Settings, candidates: Sequence[Candidate]
) -> tuple[_Opened, tuple[Tried, ...]]:
    """Opens candidates, measures them where there are several, and closes all but the best.

    Raises:
        StartError: None of them may serve; the first one's reason.
    """
    started = time.monotonic()
    best: _Opened | None = None
    tried: list[Tried] = []
    errors: list[StartError] = []
    for candidate in candidates:
        if best is not None and time.monotonic() - started > _BUDGET_S:
            tried.append(Tried(candidate.engine, candidate.precision))
            continue
        try:
            opened = _open(settings, candidate, measured=len(candidates) > 1)
        except StartError as error:
            errors.append(error)
            tried.append(Tried(candidate.engine, candidate.precision, refused=str(error)))
            continue
        tried.append(Tried(candidate.engine, candidate.precision, opened.images_per_s or None))
        if best is None:
            best = opened
        elif _is_better(opened, best):
            best.engine.close()
            best = opened
        else:
            opened.engine.close()
    if best is None:
        raise errors[0]
    if len(candidates) > 1:
        _log.info("%s", _account(best, tried))
        return best, tuple(tried)
    return best, ()


def _open(settings: Settings, candidate: Candidate, *, measured: bool) -> _Opened:
    engine, cosine = candidate.artifact.load(
        candidate.engine,
        precision=candidate.precision,
        provider=settings.provider,
        threads=settings.threads,
    )
    speed = 0.0
    if measured:
        try:
            speed = _images_per_s(engine, candidate.artifact)
        except EngineError as error:
            engine.close()
            raise StartError("the engine fails on its canaries") from error
    return _Opened(candidate, engine, cosine, speed)


def _images_per_s(engine: Engine, artifact: Artifact) -> float:
    """Returns the best of a few full batches; the canaries have warmed it up."""
    size = artifact.spec.max_batch_size
    pixels = np.resize(artifact.certificate.pixels, (size, *artifact.certificate.pixels.shape[1:]))
    outputs = (artifact.spec.default_output,)
    times: list[float] = []
    while len(times) < _LEAST_RUNS or sum(times) < _TIMED_S:
        began = time.perf_counter()
        engine.encode(pixels, outputs)
        times.append(time.perf_counter() - began)
    return size / min(times)


def _is_better(one: _Opened, other: _Opened) -> bool:
    further = _distance(one) - _distance(other)
    bar = _WORTH if further > 0 else 1 / _WORTH if further < 0 else 1.0
    return one.images_per_s > bar * other.images_per_s


def _distance(opened: _Opened) -> int:
    """How far its precision is from the trained vectors; an unknown one is the furthest."""
    precision = opened.candidate.precision
    return _PRECISIONS.index(precision) if precision in _PRECISIONS else len(_PRECISIONS)


def _engines(settings: Settings) -> tuple[LocalEngineName, ...]:
    if settings.engine != "auto":
        return (settings.engine,) if settings.engine != "triton" else ()
    if settings.provider == CPU_PROVIDER and find_spec("openvino") is not None:
        return ("onnxruntime", "openvino")
    return ("onnxruntime",)


def _is_allowed(settings: Settings, certified: CertifiedPrecision) -> bool:
    """Whether a precision is the one named, or good enough to be chosen unasked."""
    if settings.precision != "auto":
        return certified.precision == settings.precision
    return certified.qualifies is not False


def _runs(engine: LocalEngineName, artifact: Artifact, precision: str) -> bool:
    """Whether an engine can run an artifact at a precision; ONNX Runtime is slow at int8."""
    return engine == "openvino" or precision == artifact.spec.precision


def _is(candidate: Candidate, info: EngineInfo) -> bool:
    return (candidate.engine, candidate.precision) == (info.engine, info.precision)


def _is_same_encoder(one: Artifact, other: Artifact) -> bool:
    return (one.spec.encoder_digest, one.spec.preprocess_digest) == (
        other.spec.encoder_digest,
        other.spec.preprocess_digest,
    )


def _as_the_same_model(other: Artifact, own: Artifact) -> Artifact:
    """Returns an artifact under the name and version of the model that it stands in for."""
    spec = replace(other.spec, name=own.spec.name, version=own.spec.version)
    config = type(other.config)()
    config.CopyFrom(other.config)
    config.name = own.spec.name
    return replace(other, spec=spec, config=config)


def _why_none(settings: Settings, artifacts: Sequence[Artifact]) -> str:
    known = {
        precision: certified.qualifies
        for artifact in artifacts
        for precision, certified in artifact.certificate.precisions.items()
    }
    if settings.precision != "auto" and settings.precision not in known:
        return f"{settings.model} is certified for {', '.join(known)}, not for {settings.precision}"
    if settings.precision != "auto":
        return f"the {settings.engine} engine does not run {settings.model} at {settings.precision}"
    return f"nothing that {settings.model} is certified for may be chosen: name a --precision"


def _account(best: _Opened, tried: Sequence[Tried]) -> str:
    def said(one: Tried) -> str:
        if one.refused is not None:
            return f"{one.engine} {one.precision} refused ({one.refused})"
        if one.images_per_s is None:
            return f"{one.engine} {one.precision} not tried"
        return f"{one.engine} {one.precision} {one.images_per_s:.0f} images/s"

    chosen = best.candidate
    return f"chosen {chosen.engine} {chosen.precision} of {'; '.join(map(said, tried))}"
