"""Runs an exported file with ONNX Runtime on the CPU, as a function of pictures.

Knows neither torch nor what the vectors should be.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amdim_export.errors import GraphError
from amdim_export.names import IMAGES

# Read while it loads: without it ONNX Runtime (1.32) tells Microsoft how it is used.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

LEVELS = ("disabled", "basic", "extended", "layout", "all")
"""ONNX Runtime's graph optimisation levels; `all` is what serves."""

_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "layout": ort.GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class OnnxEncoder:
    """An exported file, loaded.

    Attributes:
        output_names: In the file's order.
        output_shapes: Per image; None where a size is free.
    """

    def __init__(self, model: bytes | Path, *, level: str = "all", threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = _LEVELS[level]
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # threads that spin while they wait starve others on a busy machine
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = str(model) if isinstance(model, Path) else model
        try:
            self._session = ort.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise GraphError(f"ONNX Runtime cannot load the model: {error}") from error
        outputs = self._session.get_outputs()
        self.output_names = tuple(output.name for output in outputs)
        self.output_shapes = {
            output.name: tuple(size if isinstance(size, int) else None for size in output.shape[1:])
            for output in outputs
        }

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Returns every output of (N, H, W, 3) uint8 pictures."""
        values = self._session.run(list(self.output_names), {IMAGES: np.ascontiguousarray(pixels)})
        return dict(zip(self.output_names, values, strict=True))
