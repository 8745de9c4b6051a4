"""The same image gives the same vector by every route and engine, a real Triton included."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as grpc_aio
from numpy.typing import NDArray

from amdim_clients.contract import read_certificate, read_model_spec
from amdim_clients.images import decode_image
from amdim_clients.windows import decode_windows
from amdim_serving.app import create_app
from amdim_serving.deployment import Deployment
from amdim_serving.gateway import build_gateway
from amdim_serving.kserve_grpc import create_grpc_server
from amdim_serving.local import open_local_encoder, open_local_windows
from amdim_serving.settings import Settings

pytestmark = [pytest.mark.triton, pytest.mark.slow]

ENGINES = ("onnxruntime", "openvino", "triton")
Vectors = NDArray[np.float32]


class Served:
    """One gateway, by HTTP in process and by gRPC on a port; every method is one route."""

    def __init__(self, http: httpx.AsyncClient, grpc: Any, side: int) -> None:
        self.http, self.grpc, self.side = http, grpc, side

    async def post(self, path: str, **request: Any) -> httpx.Response:
        answer = await self.http.post(path, **request)
        assert answer.status_code == 200, answer.text
        return answer

    async def raw(self, data: bytes) -> Vectors:
        answer = await self.post("/embed?normalize=false", content=data)
        return np.asarray(answer.json()["data"][0]["embedding"], np.float32)

    async def multipart(self, data: bytes) -> Vectors:
        answer = await self.post("/embed?normalize=false", files={"images": ("a", data)})
        return np.asarray(answer.json()["data"][0]["embedding"], np.float32)

    async def json_base64(self, data: bytes) -> Vectors:
        images = [{"data": base64.b64encode(data).decode()}]
        body = {"images": images, "normalize": False, "encoding_format": "base64"}
        answer = await self.post("/embed", json=body)
        part = answer.json()["data"][0]["embedding"]
        return np.frombuffer(base64.b64decode(part["data"]), "<f4").reshape(part["shape"])

    async def npy(self, data: bytes) -> Vectors:
        accept = {"Accept": "application/x-npy"}
        answer = await self.post("/embed?normalize=false", content=data, headers=accept)
        stored: Vectors = np.load(io.BytesIO(answer.content))[0]
        return stored

    async def safetensors(self, data: bytes) -> Vectors:
        accept = {"Accept": "application/vnd.safetensors"}
        answer = await self.post("/embed?normalize=false", content=data, headers=accept)
        size = int.from_bytes(answer.content[:8], "little")
        head = json.loads(answer.content[8 : 8 + size])
        start, end = head["embedding"]["data_offsets"]
        return np.frombuffer(answer.content[8 + size + start : 8 + size + end], "<f4")

    async def openai(self, data: bytes) -> Vectors:
        uri = "data:;base64," + base64.b64encode(data).decode()
        body = {"input": [uri], "encoding_format": "base64"}
        answer = await self.post("/v1/embeddings", json=body)
        return np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), "<f4")

    async def match_default(self, data: bytes) -> float:
        image = {"data": base64.b64encode(data).decode()}
        answer = await self.post("/match", json={"query": image, "candidates": [image]})
        return float(answer.json()["data"][0]["cosine"])

    async def kserve_json(self, pixels: NDArray[np.uint8]) -> Vectors:
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, *pixels.shape]}
        wanted = [{"name": "embedding"}]
        body = {"inputs": [{**tensor, "data": pixels.ravel().tolist()}], "outputs": wanted}
        answer = await self.post("/v2/models/amdim/infer", json=body)
        return np.asarray(answer.json()["outputs"][0]["data"], np.float32)

    async def kserve_binary(self, pixels: NDArray[np.uint8]) -> Vectors:
        return await self._binary("amdim", "images", "UINT8", pixels[None].shape, pixels.tobytes())

    async def kserve_file(self, data: bytes) -> Vectors:
        blob = len(data).to_bytes(4, "little") + data
        return await self._binary("amdim_image", "image", "BYTES", (1, 1), blob)

    async def _binary(
        self, model: str, name: str, datatype: str, shape: tuple[int, ...], blob: bytes
    ) -> Vectors:
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        tensor["parameters"] = {"binary_data_size": len(blob)}
        wanted = {"name": "embedding", "parameters": {"binary_data": True}}
        head = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
        answer = await self.post(
            f"/v2/models/{model}/infer",
            content=head + blob,
            headers={"Inference-Header-Content-Length": str(len(head))},
        )
        cut = int(answer.headers["Inference-Header-Content-Length"])
        return np.frombuffer(answer.content[cut:], "<f4")

    async def grpc_pixels(self, pixels: NDArray[np.uint8]) -> Vectors:
        tensor = grpc_aio.InferInput("images", [1, *pixels.shape], "UINT8")
        tensor.set_data_from_numpy(pixels[None])
        return await self._grpc("amdim", tensor, "embedding")

    async def grpc_file(self, data: bytes) -> Vectors:
        tensor = grpc_aio.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[data]], object))
        return await self._grpc("amdim_image", tensor, "embedding")

    async def grpc_windows(self, pixels: NDArray[np.uint8]) -> Vectors:
        tensor = grpc_aio.InferInput("images", [1, *pixels.shape], "UINT8")
        tensor.set_data_from_numpy(pixels[None])
        return await self._grpc("amdim_windows", tensor, "windows")

    async def embed_windows(self, data: bytes, scale: float) -> Vectors:
        query = f"/embed?outputs=windows&normalize=false&scales={scale:g}"
        answer = await self.post(query, content=data)
        return np.asarray(answer.json()["data"][0]["windows"][0]["data"], np.float32)

    async def _grpc(self, model: str, tensor: Any, output: str) -> Vectors:
        wanted = [grpc_aio.InferRequestedOutput(output)]
        answer = await self.grpc.infer(model, [tensor], outputs=wanted)
        vectors: Vectors = answer.as_numpy(output)[0]
        return vectors


@pytest.mark.parametrize("engine", ENGINES)
def test_every_route_gives_the_vector_that_the_certificate_vouches_for(
    engine: str, repository: Path, triton: Any, photos: list[bytes]
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    named: dict[str, Any] = {"triton_url": triton.grpc} if engine == "triton" else {"threads": 1}
    # fp32 by name: what `auto` takes depends on the machine, and its certificate with it
    settings = Settings(model_repository=repository, engine=engine, precision="fp32", **named)
    spec = read_model_spec(repository / "amdim")
    tolerance = read_certificate(repository / "amdim" / spec.version).tolerance
    encoder = open_local_encoder(repository, "amdim")
    windows = open_local_windows(repository)

    def check(route: str, got: Vectors, want: Vectors) -> None:
        assert got.shape == want.shape, route
        assert np.abs(got - want).max() <= tolerance.max_relative_error * np.abs(want).max(), route
        cosine = got.ravel() @ want.ravel() / np.linalg.norm(got) / np.linalg.norm(want)
        assert cosine >= tolerance.min_cosine, route

    async def every_route(served: Served) -> None:
        for data in photos[:3]:
            pixels = decode_image(data, spec.preprocess).pixels
            want = encoder.encode(pixels[None], ["embedding"])["embedding"][0]
            by_file = (
                *(served.raw, served.multipart, served.json_base64, served.npy),
                *(served.safetensors, served.kserve_file, served.grpc_file),
            )
            for from_file in by_file:
                check(from_file.__name__, await from_file(data), want)
            for from_pixels in (served.kserve_json, served.kserve_binary, served.grpc_pixels):
                check(from_pixels.__name__, await from_pixels(pixels), want)
            check("openai", await served.openai(data), want / np.linalg.norm(want))
            assert await served.match_default(data) == pytest.approx(1.0, abs=1e-5)
        ((_, pixels),) = decode_windows(photos[0], spec.preprocess, (1.5,))
        want = windows.encode(pixels)
        check("embed_windows", await served.embed_windows(photos[0], 1.5), want)
        check("grpc_windows", await served.grpc_windows(pixels), want)

    run(settings, every_route)
    encoder.close()
    windows.close()


def run(settings: Settings, scenario: Callable[[Served], Awaitable[None]]) -> None:
    """Runs a scenario against a gateway of its own."""

    async def main() -> None:
        gateway = build_gateway(settings)
        assert gateway.service.engine.info.engine == settings.engine
        deployment = Deployment(gateway)
        app = create_app(deployment)
        async with app.lifespan():
            server = create_grpc_server(deployment)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            transport = httpx.ASGITransport(app)
            try:
                async with (
                    httpx.AsyncClient(transport=transport, base_url="http://test") as http,
                    grpc_aio.InferenceServerClient(f"127.0.0.1:{port}") as grpc,
                ):
                    await scenario(Served(http, grpc, gateway.service.spec.image_size))
            finally:
                await server.stop(None)

    asyncio.run(main())
