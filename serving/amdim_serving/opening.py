"""Opens the engine that the settings name and proves it on its canaries before it may serve.

Knows the repository's files; no HTTP and no batching.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
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
from amdim_serving.errors import CanaryError, EngineError, ServingError, StartError

ModelConfig = Any  # tritonclient publishes no types
EngineName = Literal["onnxruntime", "openvino", "triton"]
MODEL_FILE = "model.onnx"
# Providers that compute on the cores of this process.
_ON_CORES = frozenset({"CPU", "CPUExecutionProvider"})


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A loaded engine that reproduced its certificate.

    Attributes:
        engine: Takes all the threads there are for each call.
        beside: The same with one thread a call and a call a core, for cores that decode pictures
            too: calls that wait for each other's threads waste them. None: was not asked for, or
            the engine does not compute on this process's cores.
        canary_cosine: The worst cosine of its canaries.
        config: Triton's message, as config.pbtxt has it.
    """

    engine: Engine
    certificate: Certificate
    canary_cosine: float
    config: ModelConfig
    beside: Engine | None = None


def open_model(
    repository: Path,
    model: str,
    *,
    version: str | None = None,
    engine_name: EngineName = "onnxruntime",
    provider: str = "CPUExecutionProvider",
    threads: int = 0,
    beside: bool = False,
) -> OpenModel:
    """Loads one version of a model and runs its canaries.

    Args:
        repository: The folder of models.
        model: The model's name.
        version: The highest when not given.
        engine_name: The engine that must run it.
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
    model_dir = repository / model
    try:
        spec = read_model_spec(model_dir, version)
        certificate = read_certificate(model_dir / spec.version)
        config = read_model_config(model_dir)
    except ContractError as error:
        raise StartError(str(error)) from error
    model_path = model_dir / spec.version / MODEL_FILE
    if not model_path.is_file():
        raise StartError(f"no model at {model_path}")
    if file_digest(model_path) != spec.artifact_digest:
        raise StartError(f"{model_path} is not the file its certificate vouches for")
    load = partial(_load, engine_name, model_path, spec, provider=provider)
    engine, cosine = _proved(load(threads=threads), certificate)
    second: Engine | None = None
    cores = len(os.sched_getaffinity(0))
    if beside and not threads and cores > 1 and engine.info.provider in _ON_CORES:
        try:
            second, other = _proved(load(threads=1, calls=cores), certificate)
        except ServingError:
            engine.close()
            raise
        cosine = min(cosine, other)
    return OpenModel(engine, certificate, cosine, config, second)


def _proved(engine: Engine, certificate: Certificate) -> tuple[Engine, float]:
    """Returns the engine and its worst canary's cosine; closes it when it fails."""
    try:
        return engine, check_canaries(engine, certificate)
    except EngineError as error:
        engine.close()
        raise CanaryError("the engine fails on the certificate's canaries") from error
    except CanaryError:
        engine.close()
        raise


def _load(
    engine_name: EngineName,
    model_path: Path,
    spec: ModelSpec,
    *,
    provider: str,
    threads: int,
    calls: int = 0,
) -> Engine:
    """Returns the engine named; its library is imported only now."""
    try:
        if engine_name == "openvino":
            from amdim_serving.engines.openvino import OpenVinoEngine

            return OpenVinoEngine(model_path, spec, threads=threads, calls=calls)
        from amdim_serving.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(model_path, spec, provider=provider, threads=threads, calls=calls)
    except ModuleNotFoundError as error:
        raise StartError(f"the {engine_name} engine is not installed") from error
