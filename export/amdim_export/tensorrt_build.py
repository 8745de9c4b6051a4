"""An ONNX file parsed and built by TensorRT, whose parser's warnings count as failures.

The module that builds is an argument: TensorRT itself where engines are served, TensorRT-RTX,
which has the same interface and needs no GPU, where only parsing and compiling are to be proved.
Standard library only: neither torch nor NumPy need be there. Knows no repository.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from amdim_export.errors import EngineError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """The input shapes that one set of kernels takes, and those that it is fastest at."""

    smallest: Shape
    best: Shape
    largest: Shape


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A built engine.

    Attributes:
        data: The serialised engine.
        inputs: Name -> shape, -1 where free.
        outputs: The same.
        notes: What TensorRT warned of while it built; parsing gave no warning.
    """

    data: bytes
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    notes: tuple[str, ...]


def batch_profiles(image_size: int, max_batch_size: int) -> list[Profile]:
    """Returns a profile for single images and one for batches, tuned for full ones."""
    one = (1, image_size, image_size, 3)
    full = (max_batch_size, *one[1:])
    single = [Profile(one, one, one)]
    return single if max_batch_size == 1 else [*single, Profile(one, full, full)]


def build_plan(trt: Any, onnx_model: bytes, profiles: Sequence[Profile]) -> Plan:
    """Builds an engine that computes exactly in the types that the graph names.

    Args:
        trt: The module `tensorrt`, or one of the same interface.
        onnx_model: A file of one input.
        profiles: Input shapes to serve, in Triton's order of profiles.

    Raises:
        EngineError: The parser refused the file or warned of something, or no engine came out.
    """
    log = _collecting_logger(trt)
    try:
        builder = trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # what its bindings raise without a driver
        raise EngineError(f"TensorRT cannot start: {log.last or error}") from error
    # strongly typed: no layer is silently run at less than the graph says
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    del log.messages[:]  # what starting up said is not of the file
    if not parser.parse(onnx_model):
        said = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise EngineError(f"TensorRT cannot parse the graph: {'; '.join(said)}")
    if log.messages:
        raise EngineError(f"TensorRT's parser warns: {'; '.join(log.messages)}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # a certified fp32 has all its bits
    name = network.get_input(0).name
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(name, shapes.smallest, shapes.best, shapes.largest)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"TensorRT takes no profile of {shapes} for {name}")
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(f"TensorRT built no engine: {'; '.join(log.messages)}")
    return Plan(
        bytes(serialized),
        _shapes(network.get_input(index) for index in range(network.num_inputs)),
        _shapes(network.get_output(index) for index in range(network.num_outputs)),
        tuple(log.messages),
    )


def _shapes(tensors: Any) -> dict[str, Shape]:
    return {tensor.name: tuple(tensor.shape) for tensor in tensors}


def _collecting_logger(trt: Any) -> Any:
    """Returns a logger that keeps warnings and errors in `messages`."""
    severity = trt.ILogger.Severity
    kept = (severity.WARNING, severity.ERROR, severity.INTERNAL_ERROR)

    class CollectingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # its bindings ask for exactly this call
            self.messages: list[str] = []

        @property
        def last(self) -> str:
            return self.messages[-1] if self.messages else ""

        def log(self, level: Any, message: str) -> None:
            if level in kept:
                self.messages.append(message)

    return CollectingLogger()
