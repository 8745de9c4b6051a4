"""KServe v2 over gRPC: the port that Triton's own clients talk to.

Translates; the tensors' meaning is in `kserve.py`, the work in `EmbedService`. What is not
listed in `_METHODS` (shared memory, streaming, unloading) is UNIMPLEMENTED.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from amdim_serving.deployment import Deployment
from amdim_serving.errors import RequestError, as_request_error
from amdim_serving.gateway import Gateway, package_version
from amdim_serving.heads import Head, RequestIds
from amdim_serving.kserve import (
    GRPC_EXTENSIONS,
    PLATFORM,
    SERVER_NAME,
    KServeModel,
    check_input,
    find_model,
    model_state,
    read_bytes,
    read_values,
    requested_outputs,
    served_models,
)
from amdim_serving.logs import log_request
from amdim_serving.stats import Duration

_log = logging.getLogger(__name__)

_SERVICE = "inference.GRPCInferenceService"
_LOAD = "RepositoryModelLoad"
_OPEN_METHODS = frozenset({"ServerLive", "ServerReady"})

Message = Any  # tritonclient publishes no types
Method = Callable[[Gateway, Message], Awaitable[Message]]


def create_grpc_server(deployment: Deployment, *, is_shared: bool = False) -> grpc.aio.Server:
    """Returns a server without a port yet; its messages are bounded as HTTP bodies are.

    Args:
        deployment: What serves.
        is_shared: Whether other processes listen on the same port.
    """
    settings = deployment.current.settings
    servicer = _Servicer(deployment)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            servicer.guarded(name),
            request_deserializer=getattr(pb, f"{name}Request").FromString,
            response_serializer=getattr(pb, f"{name}Response").SerializeToString,
        )
        for name in _METHODS
    }
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.server_handshake_timeout_ms", round(1000 * settings.header_seconds)),
            # A taken port must be told, not shared, but among the workers of one server.
            ("grpc.so_reuseport", int(is_shared)),
        ]
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, handlers)])
    return server


class _Servicer:
    """One method for each of `_METHODS`; each takes its request and returns its answer."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._ids = RequestIds()

    def guarded(self, name: str) -> Callable[[Message, Any], Awaitable[Message]]:
        """Returns a method with API keys, the error table and metrics around it."""
        method: Method = getattr(self, _METHODS[name])
        return functools.partial(self._call, name, method)

    async def _call(
        self, name: str, method: Method, request: Message, context: grpc.aio.ServicerContext
    ) -> Message:
        started = time.perf_counter()
        status = 499  # the client left
        gateway = self._deployment.current
        gateway.requests += 1
        metadata = _metadata(context)
        request_id = self._ids.of(metadata.get("x-request-id"))
        head = Head(request_id)
        try:
            context.set_trailing_metadata((("x-request-id", request_id),))
            if name not in _OPEN_METHODS and not gateway.is_authorized(_key(metadata)):
                raise RequestError("unauthorized")
            gateway.bodies.hold(request.ByteSize(), head)
            if name == _LOAD:
                await self._deployment.load(request.model_name, _key(metadata))
            answer = await method(gateway, request)
            status = 200
            return answer
        except Exception as raised:
            if not isinstance(raised, RequestError):
                _log.exception(
                    "request %s failed (gRPC %s)",
                    request_id,
                    name,
                    extra={"request_id": request_id},
                )
            code, status, message = _refusal(raised)
            await context.abort(code, message)
        finally:
            body_bytes = head.held_bytes
            gateway.bodies.release(head)
            gateway.requests -= 1
            spent_s = time.perf_counter() - started
            gateway.metrics.request(f"grpc:{name}", status, spent_s)
            if gateway.settings.access_log:
                log_request(
                    request_id,
                    protocol="grpc",
                    route=name,
                    code=status,
                    seconds=spent_s,
                    body_bytes=body_bytes,
                )

    async def server_live(self, _: Gateway, __: Message) -> Message:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, gateway: Gateway, _: Message) -> Message:
        return pb.ServerReadyResponse(ready=await gateway.why_unready() is None)

    async def model_ready(self, gateway: Gateway, request: Message) -> Message:
        model = _model(gateway, request)
        return pb.ModelReadyResponse(ready=await gateway.is_model_ready(model.name))

    async def server_metadata(self, _: Gateway, __: Message) -> Message:
        return pb.ServerMetadataResponse(
            name=SERVER_NAME, version=package_version(), extensions=GRPC_EXTENSIONS
        )

    async def model_metadata(self, gateway: Gateway, request: Message) -> Message:
        model = _model(gateway, request)
        tensor = pb.ModelMetadataResponse.TensorMetadata
        image = model.input
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=[model.spec.version],
            platform=PLATFORM,
            inputs=[tensor(name=image.name, datatype=image.datatype, shape=image.shape)],
            outputs=[
                tensor(name=info.name, datatype=info.datatype, shape=info.shape)
                for info in model.outputs
            ],
        )

    async def model_config(self, gateway: Gateway, request: Message) -> Message:
        return pb.ModelConfigResponse(config=_model(gateway, request).config)

    async def model_statistics(self, gateway: Gateway, request: Message) -> Message:
        found = [_model(gateway, request)] if request.name else served_models(gateway)
        return pb.ModelStatisticsResponse(model_stats=[_statistics(model) for model in found])

    async def repository_index(self, gateway: Gateway, _: Message) -> Message:
        entry = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[
                entry(
                    name=model.name,
                    version=model.spec.version,
                    state=model_state(gateway, model),
                )
                for model in served_models(gateway)
            ]
        )

    async def model_load(self, _: Gateway, __: Message) -> Message:
        return pb.RepositoryModelLoadResponse()  # its key was asked for and it is loaded by now

    async def model_infer(self, gateway: Gateway, request: Message) -> Message:
        model = _model(gateway, request)
        outputs = requested_outputs(model.spec, [output.name for output in request.outputs])
        arrays = await model.encode(_read_input(model, request), outputs)
        tensor = pb.ModelInferResponse.InferOutputTensor
        return pb.ModelInferResponse(
            model_name=model.name,
            model_version=model.spec.version,
            id=request.id,
            outputs=[
                tensor(name=name, datatype="FP32", shape=array.shape)
                for name, array in arrays.items()
            ],
            raw_output_contents=[
                array.astype("<f4", copy=False).tobytes() for array in arrays.values()
            ],
        )


_METHODS = {
    "ServerLive": "server_live",
    "ServerReady": "server_ready",
    "ModelReady": "model_ready",
    "ServerMetadata": "server_metadata",
    "ModelMetadata": "model_metadata",
    "ModelConfig": "model_config",
    "ModelStatistics": "model_statistics",
    "RepositoryIndex": "repository_index",
    "ModelInfer": "model_infer",
    _LOAD: "model_load",
}


def _model(gateway: Gateway, request: Message) -> KServeModel:
    """Returns the model that a request names.

    Raises:
        RequestError: unknown_model.
    """
    if isinstance(request, pb.ModelInferRequest):
        return find_model(gateway, request.model_name, request.model_version)
    return find_model(gateway, request.name, request.version)


def _read_input(model: KServeModel, request: Message) -> Any:
    """Returns the request's only tensor as what the model encodes.

    Raises:
        RequestError: bad_request, no_images.
    """
    if len(request.inputs) != 1:
        raise RequestError("bad_request", "The model takes exactly one input.")
    tensor = request.inputs[0]
    if "shared_memory_region" in tensor.parameters:
        raise RequestError("bad_request", "Shared memory is not supported.")
    shape = list(tensor.shape)
    check_input(model, tensor.name, tensor.datatype, shape)
    if request.raw_input_contents:
        return read_bytes(model, request.raw_input_contents[0], shape)
    contents = tensor.contents
    values = contents.bytes_contents if tensor.datatype == "BYTES" else contents.uint_contents
    return read_values(model, list(values), shape)


def _metadata(context: grpc.aio.ServicerContext) -> dict[str, bytes]:
    return {
        name: value.encode() if isinstance(value, str) else value
        for name, value in context.invocation_metadata() or ()
    }


def _key(metadata: Mapping[str, bytes]) -> bytes | None:
    """Returns the API key of a call's metadata."""
    bearer = metadata.get("authorization", b"")
    if bearer[:7].lower() == b"bearer ":
        return bearer[7:].strip()
    return metadata.get("x-api-key")


def _duration(duration: Duration) -> Message:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)


def _statistics(model: KServeModel) -> Message:
    seen = model.stats
    return pb.ModelStatistics(
        name=model.name,
        version=model.spec.version,
        last_inference=seen.last_inference_ms,
        inference_count=seen.inference_count,
        execution_count=seen.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(seen.success),
            fail=_duration(seen.fail),
            queue=_duration(seen.queue),
            compute_input=_duration(seen.compute_input),
            compute_infer=_duration(seen.compute_infer),
            compute_output=_duration(seen.compute_output),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=size, compute_infer=_duration(spent))
            for size, spent in sorted(seen.batches.items())
        ],
    )


def _refusal(raised: Exception) -> tuple[grpc.StatusCode, int, str]:
    """Returns what an error means; the caller keeps no variable of it, for edge.py's reason."""
    error = as_request_error(raised)
    return grpc.StatusCode[error.kind.grpc], error.kind.status, error.message
