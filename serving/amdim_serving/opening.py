"""Opens an engine on an artifact of the repository and proves it on its canaries.

Knows the repository's files; no settings, no HTTP and no batching.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from amdim_clients.contract import (
    Certificate,
    ModelSpec,
    file_digest,
    read_certificate,
    read_model_config,
    read_model_spec,
)
from amdim_clients.errors import ContractError
from amdim_serving.canaries import check_canaries
from amdim_serving.engines import Engine
from amdim_serving.errors import CanaryError, EngineError, StartError

ModelConfig = Any  # tritonclient publishes no types
LocalEngineName = Literal["onnxruntime", "openvino"]
MODEL_FILE = "model.onnx"
CPU_PROVIDER = "CPUExecutionProvider"
# Providers that compute on the cores of this process.
_ON_CORES = frozenset({"CPU", CPU_PROVIDER})


@dataclass(frozen=True, slots=True)
class Tried:
    """One way of serving a model, and what came of trying it."""

    engine: str
    precision: str
    images_per_s: float | None = None
    """With all the threads, in batches of the largest size; None: not measured."""
    refused: str | None = None
    """Why it may not serve."""


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A loaded engine that reproduced its certificate.

    Attributes:
        engine: Takes all the threads there are for each call.
        beside: The same with one thread a call and a call a core (`engine` itself where there is
            but one), for cores that decode pictures
            too: calls that wait for each other's threads waste them. None: was not asked for, or
            the engine does not compute on this process's cores.
        canary_cosine: The worst cosine of its canaries.
        config: Triton's message, as config.pbtxt has it.
        tried: What it was chosen among; empty where it was named.
    """

    engine: Engine
    certificate: Certificate
    canary_cosine: float
    config: ModelConfig
    beside: Engine | None = None
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True, slots=True)
class WindowsModel:
    """A loaded windows model that reproduced its certificate, and how nearly."""

    engine: Engine
    certificate: Certificate
    canary_cosine: float
    config: ModelConfig


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model file that its certificate vouches for, with all that is said of it."""

    path: Path
    spec: ModelSpec
    certificate: Certificate
    config: ModelConfig

    def load(
        self,
        engine_name: LocalEngineName,
        *,
        precision: str | None = None,
        provider: str = CPU_PROVIDER,
        threads: int = 0,
        calls: int = 0,
    ) -> tuple[Engine, float]:
        """Loads the file and runs its canaries.

        Args:
            engine_name: The engine that must run it.
            precision: That it must run at; the artifact's own when not given.
            provider: ONNX Runtime's execution provider that must run it.
            threads: Of one call; 0: as many as cores.
            calls: At once, at most; 0: as many as the config has instances.

        Returns:
            The engine, and its worst canary's cosine.

        Raises:
            StartError: It is not certified for the precision, or cannot be loaded.
            ProviderError: The provider or precision asked for would not run it.
            CanaryError: The engine does not reproduce the certificate.
        """
        precision = precision or self.spec.precision
        try:
            certificate = self.certificate.at(precision)
        except ContractError as error:
            raise StartError(f"{self.spec.name}: {error}") from error
        engine = self._load(engine_name, precision, provider, threads, calls)
        try:
            return engine, check_canaries(engine, certificate)
        except EngineError as error:
            engine.close()
            raise CanaryError("the engine fails on the certificate's canaries") from error
        except CanaryError:
            engine.close()
            raise

    def _load(
        self,
        engine_name: LocalEngineName,
        precision: str,
        provider: str,
        threads: int,
        calls: int,
    ) -> Engine:
        """Returns the engine named; its library is imported only now."""
        try:
            if engine_name == "openvino":
                from amdim_serving.engines.openvino import OpenVinoEngine

                return OpenVinoEngine(
                    self.path, self.spec, precision=precision, threads=threads, calls=calls
                )
            if precision != self.spec.precision:
                raise StartError(
                    f"ONNX Runtime runs {self.spec.precision} artifacts at "
                    f"{self.spec.precision}, not at {precision}: --engine openvino does"
                )
            from amdim_serving.engines.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(
                self.path, self.spec, provider=provider, threads=threads, calls=calls
            )
        except ModuleNotFoundError as error:
            raise StartError(
                f"the {engine_name} engine is not installed: pip install {engine_name}"
            ) from error


def read_artifact(repository: Path, model: str, version: str | None = None) -> Artifact:
    """Returns a version of a model, the highest when none is named, its file checked.

    Raises:
        StartError: Config, certificate and file do not fit together.
    """
    model_dir = repository / model
    try:
        spec = read_model_spec(model_dir, version)
        certificate = read_certificate(model_dir / spec.version)
        config = read_model_config(model_dir)
    except ContractError as error:
        raise StartError(str(error)) from error
    path = model_dir / spec.version / MODEL_FILE
    if not path.is_file():
        raise StartError(f"no model at {path}")
    if file_digest(path) != spec.artifact_digest:
        raise StartError(f"{path} is not the file its certificate vouches for")
    return Artifact(path, spec, certificate, config)


def open_model(
    repository: Path,
    model: str,
    *,
    version: str | None = None,
    engine_name: LocalEngineName = "onnxruntime",
    precision: str | None = None,
    provider: str = CPU_PROVIDER,
    threads: int = 0,
    beside: bool = False,
) -> OpenModel:
    """Loads one version of a model and runs its canaries.

    Args:
        repository: The folder of models.
        model: The model's name.
        version: The highest when not given.
        engine_name: The engine that must run it.
        precision: That it must run at; the artifact's own when not given.
        provider: ONNX Runtime's execution provider that must run it.
        threads: Of one engine call; 0: as many as cores.
        beside: Whether to load it a second time, to run beside other work on the same cores; not
            done where `threads` says how many are to be used.

    Raises:
        StartError: Config, certificate and artifact do not fit together, or the file cannot be
            loaded.
        ProviderError: The provider asked for would not run it.
        CanaryError: The engine does not reproduce the certificate.
    """
    artifact = read_artifact(repository, model, version)
    engine, cosine = artifact.load(
        engine_name, precision=precision, provider=provider, threads=threads
    )
    opened = OpenModel(engine, artifact.certificate, cosine, artifact.config)
    return with_beside(opened, artifact, threads=threads) if beside else opened


def with_beside(opened: OpenModel, artifact: Artifact, *, threads: int) -> OpenModel:
    """Returns the model with a second engine for cores that decode too, where that helps.

    Args:
        opened: Its engine computes on this process's cores, or nothing is done.
        artifact: What it has loaded.
        threads: As asked for; other than 0 nothing is done either.

    Raises:
        StartError: The second one cannot be loaded or does not reproduce its canaries.
    """
    engine = opened.engine
    cores = len(os.sched_getaffinity(0))
    if threads or engine.info.provider not in _ON_CORES:
        return opened
    if cores == 1 and engine.info.calls == 1:  # it is such a one itself
        return replace(opened, beside=engine)
    name: LocalEngineName = "openvino" if engine.info.engine == "openvino" else "onnxruntime"
    try:
        second, cosine = artifact.load(
            name,
            precision=engine.info.precision,
            provider=engine.info.provider if name == "onnxruntime" else CPU_PROVIDER,
            threads=1,
            calls=cores,
        )
    except StartError:
        engine.close()
        raise
    return OpenModel(
        engine,
        opened.certificate,
        min(cosine, opened.canary_cosine),
        opened.config,
        second,
        opened.tried,
    )
