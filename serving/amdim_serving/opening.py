"""Opens the engine that the settings name and proves it on its canaries before it may serve.

Knows the repository's files; no HTTP and no batching.
"""

from __future__ import annotations

from dataclasses import dataclass
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
EngineName = Literal["onnxruntime", "openvino"]
MODEL_FILE = "model.onnx"


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A loaded engine that reproduced its certificate.

    Attributes:
        canary_cosine: The worst cosine of its canaries.
        config: Triton's message, as config.pbtxt has it.
    """

    engine: Engine
    certificate: Certificate
    canary_cosine: float
    config: ModelConfig


def open_model(
    repository: Path,
    model: str,
    *,
    version: str | None = None,
    engine_name: EngineName = "onnxruntime",
    provider: str = "CPUExecutionProvider",
    threads: int = 0,
) -> OpenModel:
    """Loads one version of a model and runs its canaries.

    Args:
        repository: The folder of models.
        model: The model's name.
        version: The highest when not given.
        engine_name: The engine that must run it.
        provider: ONNX Runtime's execution provider that must run it.
        threads: Of one engine call; 0: as many as cores.

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
    engine = _load(engine_name, model_path, spec, provider=provider, threads=threads)
    try:
        cosine = check_canaries(engine, certificate)
    except EngineError as error:
        engine.close()
        raise CanaryError("the engine fails on the certificate's canaries") from error
    except CanaryError:
        engine.close()
        raise
    return OpenModel(engine, certificate, cosine, config)


def _load(
    engine_name: EngineName, model_path: Path, spec: ModelSpec, *, provider: str, threads: int
) -> Engine:
    """Returns the engine named; its library is imported only now."""
    try:
        if engine_name == "openvino":
            from amdim_serving.engines.openvino import OpenVinoEngine

            return OpenVinoEngine(model_path, spec, threads=threads)
        from amdim_serving.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(model_path, spec, provider=provider, threads=threads)
    except ModuleNotFoundError as error:
        raise StartError(f"the {engine_name} engine is not installed") from error
