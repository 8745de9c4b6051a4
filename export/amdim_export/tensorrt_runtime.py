"""TensorRT on the machine at hand: what is missing for it, and an engine as a function of pictures.

torch lends the GPU's memory. Knows neither the graph nor what the vectors should be.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amdim_export.errors import EngineError
from amdim_export.names import IMAGES

MAJOR = 10
"""The series that Triton's images carry; 11 changed the builder's interface."""

_INSTALL = (
    "pip install 'tensorrt-cu12>=10,<11' --extra-index-url https://pypi.nvidia.com, "
    "or take NVIDIA's image nvcr.io/nvidia/tensorrt"
)
_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # Linux; Windows' Linux


@dataclasses.dataclass(frozen=True, slots=True)
class TensorRTMachine:
    """TensorRT and the GPU that it will use.

    Attributes:
        trt: The module.
        version: Its version.
        sm: The GPU's compute capability, as in "9.0".
        gpu: The GPU's name.
    """

    trt: Any
    version: str
    sm: str
    gpu: str


def missing_for_tensorrt() -> list[str]:
    """Returns what this machine lacks to build or run an engine, a clause each."""
    missing = []
    version = _version()
    if version is None:
        missing.append(f"TensorRT {MAJOR} for Python ({_INSTALL})")
    elif version.split(".")[0] != str(MAJOR):
        missing.append(f"TensorRT {MAJOR}, for here is {version} ({_INSTALL})")
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        missing.append("PyTorch (pip install 'amdim-embed[export]')")
        torch = None
    if torch is not None and torch.version.cuda is None:
        missing.append(f"a CUDA build of PyTorch, for here is {torch.__version__}")
    if not any(path.exists() for path in _DRIVERS):
        missing.append("an NVIDIA GPU and its driver (there is no /dev/nvidiactl)")
    elif torch is not None and torch.version.cuda is not None and not torch.cuda.is_available():
        missing.append("a GPU that PyTorch can use (see what nvidia-smi says)")
    return missing


def open_machine() -> TensorRTMachine:
    """Returns TensorRT and the first GPU.

    Raises:
        EngineError: Names everything that is missing.
    """
    missing = missing_for_tensorrt()
    if missing:
        raise EngineError(f"a TensorRT engine needs what is missing here: {'; '.join(missing)}")
    trt, torch = importlib.import_module("tensorrt"), importlib.import_module("torch")
    major, minor = torch.cuda.get_device_capability(0)
    return TensorRTMachine(
        trt, str(trt.__version__), f"{major}.{minor}", torch.cuda.get_device_name(0)
    )


class TensorRTEncoder:
    """An engine, loaded.

    Args:
        machine: What it was built for.
        plan: The engine's bytes.
        batches: Smallest, best and largest batch of each of its profiles.

    Raises:
        EngineError: TensorRT cannot load it.
    """

    def __init__(
        self, machine: TensorRTMachine, plan: bytes, batches: Sequence[tuple[int, int, int]]
    ) -> None:
        trt = machine.trt
        self._torch = importlib.import_module("torch")
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError("TensorRT cannot load the engine")
        self._batches = list(batches)
        self._contexts: dict[int, Any] = {}
        self._stream = self._torch.cuda.Stream()
        names = [
            self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)
        ]
        self.output_names = tuple(name for name in names if name != IMAGES)

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Returns every output of (N, S, S, 3) uint8 pictures.

        Raises:
            EngineError: No profile takes so many, or the GPU failed.
        """
        torch = self._torch
        context = self._context(len(pixels))
        images = torch.from_numpy(np.ascontiguousarray(pixels)).cuda()
        context.set_input_shape(IMAGES, tuple(images.shape))
        context.set_tensor_address(IMAGES, images.data_ptr())
        values = {}
        for name in self.output_names:
            shape = tuple(context.get_tensor_shape(name))
            values[name] = torch.empty(shape, dtype=torch.float32, device="cuda")
            context.set_tensor_address(name, values[name].data_ptr())
        torch.cuda.synchronize()  # the pictures were copied on another stream
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise EngineError("the GPU failed on a batch")
        self._stream.synchronize()
        return {name: value.cpu().numpy() for name, value in values.items()}

    def _context(self, count: int) -> Any:
        """Returns the context of the profile whose best batch is nearest, as Triton chooses."""
        fitting = [
            (abs(best - count), index)
            for index, (smallest, best, largest) in enumerate(self._batches)
            if smallest <= count <= largest
        ]
        if not fitting:
            raise EngineError(f"no profile of the engine takes a batch of {count}")
        index = min(fitting)[1]
        if index not in self._contexts:
            context = self._engine.create_execution_context()
            context.set_optimization_profile_async(index, self._stream.cuda_stream)
            self._stream.synchronize()
            self._contexts[index] = context
        return self._contexts[index]


def _version() -> str | None:
    try:
        return str(importlib.import_module("tensorrt").__version__)
    except (ImportError, OSError, AttributeError):  # OSError: a library of it is missing
        return None
