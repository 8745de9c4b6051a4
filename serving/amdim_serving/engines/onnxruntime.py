"""The embedded engine: ONNX Runtime in process.

Knows no HTTP and no batching. The execution provider asked for is asserted, never silently
replaced.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amdim_clients.contract import INPUT, ModelSpec
from amdim_serving.engines import EngineInfo
from amdim_serving.engines.silent_onnxruntime import onnxruntime as ort
from amdim_serving.errors import EngineError, ProviderError, StartError

_CPU = "CPUExecutionProvider"


class OnnxRuntimeEngine:
    """An ONNX model on one execution provider.

    Args:
        model_path: The model.onnx of one version.
        spec: Its contract.
        provider: The execution provider that must run it.
        threads: Threads of one call; 0: as many as this process may use cores.
        calls: At once, at most; the model's instance count when not given.

    Raises:
        ProviderError: The provider is not installed, or fell back to another one.
        StartError: The file is not a model this runtime can load.
    """

    def __init__(
        self,
        model_path: Path,
        spec: ModelSpec,
        *,
        provider: str = _CPU,
        threads: int = 0,
        calls: int = 0,
    ) -> None:
        if provider not in ort.get_available_providers():
            raise ProviderError(f"this ONNX Runtime has no {provider}")
        threads = threads or len(os.sched_getaffinity(0))
        try:
            session = ort.InferenceSession(
                str(model_path), _session_options(threads), providers=[provider]
            )
        except Exception as error:  # the runtime's own exceptions share no base class
            raise StartError("the model cannot be loaded by ONNX Runtime") from error
        running = session.get_providers()[0]
        if running != provider:
            raise ProviderError(f"asked for {provider}, but ONNX Runtime runs on {running}")
        self._session: ort.InferenceSession | None = session
        self._run_options = ort.RunOptions()
        self._spec = spec
        self._info = EngineInfo(
            "onnxruntime", running, spec.precision, threads, calls or spec.instance_count
        )

    @property
    def spec(self) -> ModelSpec:
        """The model's contract."""
        return self._spec

    @property
    def info(self) -> EngineInfo:
        """What really runs."""
        return self._info

    @property
    def is_proved(self) -> bool:
        """Always: what was loaded stays loaded."""
        return True

    def encode(
        self, images: NDArray[np.uint8], outputs: Sequence[str]
    ) -> Mapping[str, NDArray[np.float32]]:
        """Encodes a batch; see `Engine.encode`."""
        session = self._session
        if session is None:
            raise EngineError("the engine is closed")
        names = list(outputs)
        try:
            arrays = session.run(names, {INPUT: images}, self._run_options)
        except Exception as error:  # the runtime's own exceptions share no base class
            raise EngineError("ONNX Runtime failed on a batch") from error
        return dict(zip(names, arrays, strict=True))

    def close(self) -> None:
        """Ends running calls and frees the model."""
        self._run_options.terminate = True
        self._session = None


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning workers would take the cores that decode the next pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options
