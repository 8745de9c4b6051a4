"""The gRPC clients against a real gRPC server in this process, with a toy encoder behind it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from amdim_clients.embedders import LocalEmbedder
from amdim_clients.errors import (
    ContractError,
    EngineError,
    OverloadedError,
    ResponseError,
    ServerError,
    TransportError,
)
from amdim_clients.inputs import ImageFailure
from amdim_clients.retries import RetryPolicy
from amdim_clients.triton import AsyncTritonEncoder, TritonEncoder

grpc = pytest.importorskip("grpc")

QUICK = RetryPolicy(max_retries=2, first_wait_s=0.001)


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, config, encode):
        self.config, self.encode = config, encode
        self.failures: list[object] = []
        self.batches: list[int] = []
        self.metadata: list[dict[str, str]] = []
        self.damage = lambda array: array

    def ModelConfig(self, request, context):
        if request.name != self.config.name:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        return service_pb2.ModelConfigResponse(config=self.config)

    def ModelMetadata(self, request, context):
        return service_pb2.ModelMetadataResponse(name=request.name, versions=["2", "10", "9"])

    def ModelInfer(self, request, context):
        self.metadata.append(dict(context.invocation_metadata()))
        if self.failures:
            context.abort(self.failures.pop(0), "for a while")
        shape = list(request.inputs[0].shape)
        self.batches.append(shape[0])
        pixels = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(shape)
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="10")
        vectors = self.encode(pixels, [output.name for output in request.outputs])
        for name, array in vectors.items():
            array = self.damage(array)
            answer.outputs.add(name=name, datatype="FP32", shape=array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer


@pytest.fixture
def service(model_dir, encode_toy):
    text = (model_dir / "config.pbtxt").read_text()
    return Service(text_format.Parse(text, model_config_pb2.ModelConfig()), encode_toy)


@pytest.fixture
def address(service):
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(params=["sync", "async"])
def encode(request, address):
    """Opens either client, encodes once and closes it: they must not differ."""

    def call(images, outputs=("embedding",), **options):
        options = {"retries": QUICK, **options}
        if request.param == "sync":
            with TritonEncoder(address, **options) as encoder:
                return encoder.spec, encoder.encode(images, outputs)

        async def run():
            async with await AsyncTritonEncoder.connect(address, **options) as encoder:
                return encoder.spec, await encoder.encode(images, outputs)

        return asyncio.run(run())

    return call


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)


def test_vectors_come_in_order_and_in_batches_of_the_models_size(
    encode, service, pixels, encode_toy
):
    spec, arrays = encode(pixels, ["embedding", "local7"])
    assert (spec.name, spec.version, spec.image_size) == ("amdim", "10", 64)
    assert sorted(service.batches) == [8, 16, 16]
    for name, expected in encode_toy(pixels, ["embedding", "local7"]).items():
        np.testing.assert_allclose(arrays[name], expected, rtol=1e-5)


def test_overload_is_retried(encode, service, pixels):
    service.failures = [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE]
    _, arrays = encode(pixels[:1])
    assert arrays["embedding"].shape == (1, 6)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
        (grpc.StatusCode.UNAVAILABLE, TransportError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TransportError),
        (grpc.StatusCode.INVALID_ARGUMENT, ServerError),
        (grpc.StatusCode.INTERNAL, ServerError),
    ],
)
def test_failures_that_stay_are_told(encode, service, pixels, status, error):
    service.failures = [status] * 10
    with pytest.raises(error):
        encode(pixels[:1])


def test_dead_server_and_unknown_model_are_told(encode, service, pixels):
    with pytest.raises(TransportError), TritonEncoder("127.0.0.1:9", retries=QUICK):
        pass
    with pytest.raises(ServerError, match="no such model"):
        encode(pixels, model="other")


def test_foreign_model_is_refused(encode, service, pixels):
    del service.config.parameters["amdim.format"]
    with pytest.raises(ContractError):
        encode(pixels)


@pytest.mark.parametrize(
    ("images", "outputs"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), ["embedding"]),
        (np.zeros((1, 32, 32, 3), np.uint8), ["embedding"]),
        (np.zeros((0, 64, 64, 3), np.uint8), ["embedding"]),
        (np.zeros((1, 64, 64, 3), np.uint8), ["local9"]),
    ],
)
def test_what_the_model_does_not_take_is_not_sent(encode, service, images, outputs):
    with pytest.raises(EngineError):
        encode(images, outputs)
    assert service.batches == []


@pytest.mark.parametrize("damage", [lambda a: a[:, :2], lambda a: a * np.float32(np.nan)])
def test_answer_that_breaks_the_contract_is_refused(encode, service, pixels, damage):
    service.damage = damage
    with pytest.raises(ResponseError):
        encode(pixels[:1])


def test_api_key_travels_in_the_metadata(encode, service, pixels):
    encode(pixels[:1], api_key="secret")
    assert service.metadata[0]["authorization"] == "Bearer secret"


def test_it_serves_where_an_encoder_is_asked_for(address, photo_bytes, toy_embedder):
    embedder = LocalEmbedder(TritonEncoder(address, retries=QUICK))
    prepared = [embedder.prepare(photo_bytes(0))]
    (there,), (here,) = embedder.embed(prepared), toy_embedder.embed(prepared)
    assert not isinstance(there, ImageFailure)
    assert not isinstance(here, ImageFailure)
    np.testing.assert_allclose(there["embedding"], here["embedding"], rtol=1e-5)
    embedder.close()
