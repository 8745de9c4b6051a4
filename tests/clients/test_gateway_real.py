"""Both HTTP clients against the real gateway, in a process of its own and in this one."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import numpy as np
import pytest

from amdim_clients.embedders import LocalEmbedder, open_local_encoder
from amdim_clients.errors import ServerError
from amdim_clients.gateway import AsyncEmbedClient, EmbedClient
from amdim_clients.images import decode_image
from amdim_clients.inputs import ImageFailure, RequestLimits
from amdim_clients.retries import RetryPolicy
from amdim_clients.triton import AsyncTritonEncoder, TritonEncoder


@pytest.fixture
def images(photo_bytes):
    return [photo_bytes(n, format="JPEG" if n % 2 else "PNG") for n in range(12)]


@contextlib.asynccontextmanager
async def lifespan(app):
    """Starts and ends an ASGI application as a server would, whatever it is made of."""
    to_app: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    from_app: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    running = asyncio.create_task(app({"type": "lifespan"}, to_app.get, from_app.put))
    try:
        for moment in ("startup", "shutdown"):
            await to_app.put({"type": f"lifespan.{moment}"})
            assert (await from_app.get())["type"] == f"lifespan.{moment}.complete"
            if moment == "startup":
                yield
    finally:
        await running


@pytest.fixture
def run_in_process(repository):
    """Runs a call of an async client against the application in this process."""
    app_module = pytest.importorskip("amdim_serving.app")
    from amdim_serving.deployment import Deployment
    from amdim_serving.gateway import build_gateway
    from amdim_serving.settings import Settings

    def run(call, *, limits=None, retries=None, **settings):
        async def inside():
            values = settings | {"engine": "onnxruntime", "precision": "fp32", "threads": 1}
            gateway = build_gateway(Settings(model_repository=repository, **values))
            app = app_module.create_app(Deployment(gateway))
            async with lifespan(app):
                transport = httpx.ASGITransport(app)
                async with AsyncEmbedClient(
                    "http://test", transport=transport, limits=limits, retries=retries
                ) as client:
                    return await call(client)

        return asyncio.run(inside())

    return run


def test_both_clients_and_the_engine_give_the_same_vectors(
    served, repository, images, run_in_process
):
    names = ["embedding", "global", "local5", "local7"]
    embedder = LocalEmbedder(open_local_encoder(repository), outputs=names)
    prepared = [embedder.prepare(image) for image in images]
    expected = [row for row in embedder.embed(prepared) if not isinstance(row, ImageFailure)]
    embedder.close()
    with EmbedClient(served) as client:
        sync = client.embed(images, outputs=names)
    awaited = run_in_process(lambda client: client.embed(images, outputs=names))
    for result in (sync, awaited):
        assert result.ok.tolist() == list(range(12))
        assert result.served_by is not None
        assert result.served_by.encoder_digest == embedder.origin.encoder_digest
        assert result.served_by.artifact_digest == embedder.origin.artifact_digest
        for name in names:
            stacked = np.stack([vectors[name] for vectors in expected])
            np.testing.assert_allclose(result[name], stacked, atol=1e-4)


def test_triton_clients_get_the_engines_vectors_from_the_gateway(
    gateway_process, repository, images
):
    _, address = gateway_process
    with contextlib.closing(open_local_encoder(repository)) as engine:
        spec = engine.spec
        pixels = np.stack([decode_image(image, spec.preprocess).pixels for image in images * 4])
        expected = engine.encode(pixels, list(spec.outputs))

    async def awaited():
        async with await AsyncTritonEncoder.connect(address) as encoder:
            return encoder.spec, await encoder.encode(pixels, list(spec.outputs))

    with TritonEncoder(address) as encoder:
        answers = [(encoder.spec, encoder.encode(pixels, list(spec.outputs)))]
    answers.append(asyncio.run(awaited()))
    for found, arrays in answers:
        assert found == spec
        for name, array in expected.items():
            np.testing.assert_allclose(arrays[name], array, atol=1e-4 * np.abs(array).max())


def test_raw_vectors_are_the_models_own(served, images):
    with EmbedClient(served) as client:
        unit, raw = client.embed(images), client.embed(images, normalize=False)
        assert (unit.normalized, raw.normalized) == (True, False)
        vectors = raw[next(iter(raw.arrays))]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors / lengths, unit["embedding"], atol=1e-5)
        assert client.model()["default"] == "amdim"


def test_bad_pictures_fail_alone_with_their_codes(served, images, photo_bytes):
    bad = [images[0][:200], b"text", photo_bytes(0, size=(1, 1), format="PNG")]
    codes = ["image_truncated", "unsupported_media_type", "image_too_small"]
    with EmbedClient(served) as client:
        together = client.embed([images[0], *bad, images[1]])
        assert together.ok.tolist() == [0, 4]
        assert [together.errors[n].code for n in (1, 2, 3)] == codes
        for data, code in zip(bad, codes, strict=True):
            assert client.embed(data).errors[0].code == code


def test_limits_of_the_server_are_lived_with(images, run_in_process):
    result = run_in_process(lambda client: client.embed(images), max_images=3)
    assert result.ok.tolist() == list(range(12))
    result = run_in_process(lambda client: client.embed(images), max_body_bytes=20_000)
    assert len(result.ok) + len(result.errors) == 12
    assert len(result.ok) > 0
    assert {failure.code for failure in result.errors.values()} <= {"body_too_large"}


def test_overload_passes_with_patience(images, run_in_process):
    result = run_in_process(
        lambda client: client.embed(images * 3),
        limits=RequestLimits(max_images=8, concurrency=5),
        retries=RetryPolicy(max_retries=40, first_wait_s=0.01, max_wait_s=2),
        queue_images=8,
        max_images=8,
    )
    assert result.ok.tolist() == list(range(36))


def test_unknown_output_is_told(served, images):
    with EmbedClient(served) as client, pytest.raises(ServerError) as caught:
        client.embed(images, outputs="local9")
    assert (caught.value.status, caught.value.code) == (400, "unknown_output")
    assert caught.value.request_id
