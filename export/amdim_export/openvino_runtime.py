"""Runs an exported file with OpenVINO on the CPU, as a function of pictures.

The precision asked for is read back: left alone, OpenVINO computes in bf16 where the CPU can.
OpenVINO is an extra, so this module is imported only where it is used. Knows no certificate.
"""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amdim_export.errors import GraphError
from amdim_export.names import IMAGES

_REPORTER = "openvino_telemetry"


def _load_quietly() -> Any:
    """Imports OpenVINO without its reporter, which tells Google Analytics of each import."""
    if _REPORTER in sys.modules:
        return importlib.import_module("openvino")
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # an import of it fails
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[_REPORTER]


openvino = _load_quietly()
_HINTS = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}


@functools.cache
def core() -> Any:
    """Returns this process's one OpenVINO, never unloaded.

    Two that are unloaded in the order they were loaded leave a freed signal stack behind, and the
    next signal ends the process (seen with OpenVINO 2026.4).
    """
    return openvino.Core()


class OpenVinoEncoder:
    """An exported file, compiled.

    Args:
        model: A file's path.
        compute: What layers that are not quantized compute in, fp32 or bf16.
        threads: Of one call; 0 leaves it to OpenVINO.
        only: The one output to compute, as the server has the default one; else all.

    Raises:
        GraphError: OpenVINO cannot load the file, or would compute in something else.
    """

    def __init__(
        self, model: Path, *, compute: str = "fp32", threads: int = 0, only: str = ""
    ) -> None:
        hint = _HINTS[compute]
        options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            graph = core().read_model(str(model))
            if only:
                results = [
                    one for one in graph.get_results() if only in one.input_value(0).get_names()
                ]
                graph = openvino.Model(results, graph.get_parameters(), only)
            compiled = core().compile_model(graph, "CPU", options)
        except RuntimeError as error:
            raise GraphError(f"OpenVINO cannot load the model: {error}") from error
        used = compiled.get_property("INFERENCE_PRECISION_HINT")
        if used != hint:
            raise GraphError(f"asked for {compute}, but OpenVINO computes in {used}")
        self._request = compiled.create_infer_request()
        self.output_names = tuple(port.any_name for port in compiled.outputs)

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Returns every output of (N, H, W, 3) uint8 pictures."""
        self._request.infer({IMAGES: np.ascontiguousarray(pixels)}, share_inputs=True)
        # copied, because the next call writes into the same tensors
        return {name: self._request.get_tensor(name).data.copy() for name in self.output_names}
