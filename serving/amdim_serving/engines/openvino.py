"""An engine in process for x86 CPUs: OpenVINO on the same ONNX files.

Knows no HTTP and no batching. The precision asked for is read back and asserted: left alone,
OpenVINO computes in bf16 wherever the CPU can, and int8 is float where the CPU cannot.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amdim_clients.contract import INPUT, ModelSpec
from amdim_serving.engines import EngineInfo
from amdim_serving.engines.silent_openvino import core, openvino
from amdim_serving.errors import EngineError, ProviderError, StartError

_HINTS = {
    ("fp32", "fp32"): openvino.Type.f32,
    ("fp32", "bf16"): openvino.Type.bf16,
    ("int8", "int8"): openvino.Type.f32,  # of the layers that the artifact keeps in float
}
"""What OpenVINO is asked to compute in, by an artifact's precision and the one it runs at."""


class OpenVinoEngine:
    """An ONNX model on the CPU, compiled twice where it has several outputs.

    OpenVINO computes every output of what it compiled. Most calls want the default one alone,
    which costs a tenth less without the local vectors: they have a compiled model of their own.

    Args:
        model_path: The model.onnx of one version.
        spec: Its contract.
        precision: What it must run at, the artifact's own when not given: fp32 or bf16 for an
            fp32 artifact, int8 for an int8 one.
        threads: Threads of one call; 0: as many as this process may use cores.
        calls: At once, at most; the model's instance count when not given.

    Raises:
        ProviderError: OpenVINO would compute in another precision.
        StartError: The file is not a model OpenVINO can load.
    """

    def __init__(
        self,
        model_path: Path,
        spec: ModelSpec,
        *,
        precision: str | None = None,
        threads: int = 0,
        calls: int = 0,
    ) -> None:
        precision = precision or spec.precision
        hint = _HINTS.get((spec.precision, precision))
        if hint is None:
            raise ProviderError(
                f"this engine does not run {spec.precision} artifacts at {precision}"
            )
        threads = threads or len(os.sched_getaffinity(0))
        calls = calls or spec.instance_count
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads * calls,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(calls),
        }
        try:
            model = core().read_model(str(model_path))
            whole = core().compile_model(model, "CPU", options)
            short = whole
            if len(model.outputs) > 1:
                short = core().compile_model(_only(model, spec.default_output), "CPU", options)
        except RuntimeError as error:
            raise StartError("the model cannot be loaded by OpenVINO") from error
        used = whole.get_property("INFERENCE_PRECISION_HINT")
        if used != hint:
            raise ProviderError(f"asked for {precision}, but OpenVINO computes in {used}")
        if precision == "int8" and not _multiplies_int8(whole):
            raise ProviderError("asked for int8, but OpenVINO computes in float on this CPU")
        self._whole = _Requests(whole, calls)
        self._short = _Requests(short, calls)
        self._spec = spec
        self._info = EngineInfo("openvino", "CPU", precision, threads, calls)

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
        requests = self._whole
        if tuple(outputs) == (self._spec.default_output,):
            requests = self._short
        return requests.infer(images, outputs)

    def close(self) -> None:
        """Ends the engine for every later call."""
        self._whole.close()
        self._short.close()


class _Requests:
    """As many calls of one compiled model as may run at once."""

    def __init__(self, compiled: openvino.CompiledModel, calls: int) -> None:
        self._free: queue.SimpleQueue[openvino.InferRequest | None] = queue.SimpleQueue()
        for _ in range(calls):
            self._free.put(compiled.create_infer_request())

    def infer(
        self, images: NDArray[np.uint8], outputs: Sequence[str]
    ) -> Mapping[str, NDArray[np.float32]]:
        request = self._free.get()
        try:
            if request is None:
                raise EngineError("the engine is closed")
            request.infer({INPUT: images}, share_inputs=True)
            # Copied, because the next call writes into the same tensors.
            return {name: request.get_tensor(name).data.copy() for name in outputs}
        except RuntimeError as error:
            raise EngineError("OpenVINO failed on a batch") from error
        finally:
            self._free.put(request)

    def close(self) -> None:
        for _ in range(self._free.qsize()):
            self._free.get()
        self._free.put(None)


def _only(model: openvino.Model, output: str) -> openvino.Model:
    """Returns the model without its other outputs and what only they need."""
    wanted = [one for one in model.get_results() if output in one.input_value(0).get_names()]
    return openvino.Model(wanted, model.get_parameters(), f"{model.get_name()} {output}")


def _multiplies_int8(compiled: openvino.CompiledModel) -> bool:
    """Whether any convolution was given an int8 kernel, by what the compiled graph says."""
    for node in compiled.get_runtime_model().get_ops():
        said = node.get_rt_info()
        if "primitiveType" not in said or said["layerType"].astype(str) != "Convolution":
            continue
        if said["primitiveType"].astype(str).endswith("_I8"):
            return True
    return False
