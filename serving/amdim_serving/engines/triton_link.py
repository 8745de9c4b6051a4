"""One gRPC channel to a Triton server: calls with deadlines, and failures by what they mean.

Knows KServe v2's messages and gRPC; not what is done about a failure.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from amdim_clients.contract import INPUT, ModelSpec, parse_model_config
from amdim_clients.errors import ContractError
from amdim_clients.kserve import newest_version
from amdim_serving.engines.triton_target import TritonTarget
from amdim_serving.errors import (
    EngineAnswerError,
    EngineDownError,
    EngineError,
    EngineTimeoutError,
    StartError,
)

_log = logging.getLogger(__name__)

# A question without a batch in it; a Triton that hangs is noticed after so long.
_ASK_S = 2.0
_POLL_S = 0.2
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A Triton that restarts is found again soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A channel of one's own: a gateway that reloads must not share the old one's state.
    ("grpc.use_local_subchannel_pool", 1),
)
_BROKEN = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


class TritonLink:
    """A channel to one model of one Triton."""

    def __init__(self, target: TritonTarget) -> None:
        self._target = target
        if target.tls:
            credentials = grpc.ssl_channel_credentials(target.ca)
            self._channel = grpc.secure_channel(target.address, credentials, _OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target.address, _OPTIONS)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._was_up = False
        self.config: Any = None
        """Triton's message of the model's config, once it was read."""

    @property
    def address(self) -> str:
        """Host and port, for the log."""
        return self._target.address

    @property
    def provider(self) -> str:
        """What runs the model inside Triton: its backend, and on what."""
        config = self.config
        kinds = {group.kind for group in config.instance_group} or {0}
        kind = model_config_pb2.ModelInstanceGroup.Kind.Name(max(kinds))
        return f"{config.backend or config.platform} {kind}"

    def wait_until_ready(self) -> None:
        """Waits for a Triton that is still starting, or still loading the model.

        Raises:
            StartError: It does not answer, or has no such model, after all that time.
        """
        deadline = time.monotonic() + self._target.connect_s
        said = False
        while True:
            try:
                self.read_spec()
                return
            except (EngineError, StartError) as error:
                if isinstance(error, ModelBrokenError) or time.monotonic() > deadline:
                    raise StartError(str(error)) from error
                if not said:
                    _log.info("waiting for Triton at %s: %s", self.address, error)
                    said = True
            time.sleep(_POLL_S)

    def read_spec(self) -> ModelSpec:
        """Returns what Triton says of the model: its newest loaded version.

        Raises:
            StartError: It has no such model, or the model is not one of this project.
            EngineDownError, EngineTimeoutError: It does not answer.
        """
        name = self._target.model
        try:
            metadata = self._ask("ModelMetadata", service_pb2.ModelMetadataRequest(name=name))
            answer = self._ask("ModelConfig", service_pb2.ModelConfigRequest(name=name))
        except EngineAnswerError as error:
            raise StartError(f"Triton at {self.address} has no model {name}") from error
        self.config = answer.config
        try:
            return parse_model_config(answer.config, version=newest_version(metadata))
        except ContractError as error:
            raise ModelBrokenError(str(error)) from error

    def infer(
        self, spec: ModelSpec, images: NDArray[np.uint8], outputs: Sequence[str]
    ) -> Mapping[str, NDArray[np.float32]]:
        """Encodes one batch.

        Raises:
            EngineDownError: Nothing answers.
            EngineAnswerError: Triton refused it, or answered against its own config.
            EngineTimeoutError: It took too long.
        """
        request = service_pb2.ModelInferRequest(
            model_name=spec.name, model_version=spec.version, raw_input_contents=[images.tobytes()]
        )
        request.inputs.add(name=INPUT, datatype="UINT8", shape=images.shape)
        for name in outputs:
            request.outputs.add(name=name)
        answer = self._call("ModelInfer", request, self._target.timeout_s)
        arrays = dict(_arrays(answer, len(images)))
        for name in outputs:
            if name not in arrays or not _fits(arrays[name].shape[1:], spec.outputs[name]):
                raise EngineAnswerError(f"Triton's {name} is not what its config says")
        return {name: arrays[name] for name in outputs}

    def watch(self, on_broken: Callable[[str], None]) -> None:
        """Calls `on_broken`, on a thread, whenever a connection that was up is lost."""

        def changed(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.READY:
                self._was_up = True
            elif self._was_up and state is not grpc.ChannelConnectivity.CONNECTING:
                self._was_up = state not in (*_BROKEN, grpc.ChannelConnectivity.IDLE)
                on_broken(f"the connection is lost ({state.name.lower()})")

        self._channel.subscribe(changed, try_to_connect=True)

    def close(self) -> None:
        """Ends running calls and the connection."""
        self._channel.close()

    def _ask(self, method: str, request: Any) -> Any:
        return self._call(method, request, min(_ASK_S, self._target.timeout_s))

    def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        try:
            call = getattr(self._stub, method)
            return call(request, timeout=timeout_s, metadata=self._target.headers)
        except grpc.RpcError as error:
            raise _meaning(error) from error
        except ValueError as error:  # the channel was closed by `close`
            raise EngineError("the engine is closed") from error


class ModelBrokenError(StartError):
    """The model is there and is not one of this project; waiting would not help."""


def _meaning(error: Any) -> EngineError:
    """Returns a failed call's error; its words go to the log, never to a client."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return EngineTimeoutError("Triton did not answer in time")
    if code is grpc.StatusCode.UNAVAILABLE:
        return EngineDownError(f"Triton is unavailable: {details}")
    return EngineAnswerError(f"Triton refused a call with {code.name}: {details}")


def _arrays(answer: Any, count: int) -> list[tuple[str, NDArray[np.float32]]]:
    """Returns an answer's tensors.

    Raises:
        EngineAnswerError: One is not FP32, not of `count` rows, or not as long as its shape.
    """
    if len(answer.raw_output_contents) != len(answer.outputs):
        raise EngineAnswerError("Triton's answer lacks the data of an output")
    arrays = []
    for tensor, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        shape = tuple(tensor.shape)
        is_long_enough = len(data) == 4 * math.prod(shape)
        if tensor.datatype != "FP32" or not is_long_enough or shape[:1] != (count,):
            raise EngineAnswerError(f"Triton's {tensor.name} is not what its config says")
        arrays.append((tensor.name, np.frombuffer(data, "<f4").reshape(shape)))
    return arrays


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a shape is the one wanted, where -1 is any size."""
    return len(shape) == len(wanted) and all(
        side in (want, -1) or want == -1 for side, want in zip(shape, wanted, strict=True)
    )
