"""After all kinds of requests nothing is left of them: no task, future, thread or descriptor."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpc

from amdim_serving.app import create_app
from amdim_serving.deployment import Deployment
from amdim_serving.gateway import build_gateway, reopen_gateway
from amdim_serving.heads import Head
from amdim_serving.jobs import Job, Waiting
from amdim_serving.settings import Settings
from amdim_serving.threads import Task

Picture = Callable[..., bytes]
Running = Callable[..., contextlib.AbstractContextManager[Any]]
KINDS = (asyncio.Future, asyncio.Task, Job, Waiting, Task, Head)


def alive() -> Counter[str]:
    # by type: some libraries' objects warn when asked for anything
    gc.collect()
    return Counter(type(o).__name__ for o in gc.get_objects() if issubclass(type(o), KINDS))


def ours() -> list[str]:
    """The names of the threads that a service started; libraries have others."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("decode", "engine"))]


async def ask_everything(client: httpx.AsyncClient, photo: bytes) -> None:
    """Good, bad, big, refused and given-up requests at once."""
    as_json = {"Content-Type": "application/json"}
    calls: list[Any] = []
    for _ in range(8):
        calls += [
            client.post("/embed", content=photo),
            client.post("/embed", content=photo[:300]),
            client.post("/embed", content=b""),
            client.post("/embed", files=[("images", photo)] * 9),
            client.post("/embed", files=[("images", photo)] * 60),  # over the limit
            client.post("/embed", content=b'{"images": [{"data": "!"}]}', headers=as_json),
            client.post("/match", files=[("query", photo), ("candidates", photo)]),
            client.post("/v2/models/amdim/infer", content=b"{}"),
            client.get("/nowhere"),
        ]
    tasks = [asyncio.create_task(call) for call in calls]
    given_up = [
        asyncio.create_task(client.post("/embed", files=[("images", photo)] * 30)) for _ in range(6)
    ]
    await asyncio.sleep(0.02)
    for task in given_up:
        task.cancel()
    answers = await asyncio.gather(*tasks)
    await asyncio.gather(*given_up, return_exceptions=True)
    assert {answer.status_code for answer in answers} >= {200, 400, 404, 413, 422}
    assert max(answer.status_code for answer in answers) < 500


def test_requests_leave_no_object_behind(client_for: Any, make_picture: Picture) -> None:
    async def main() -> None:
        async with client_for(max_images=50, queue_images=400) as client:
            photo = make_picture((300, 200))
            await ask_everything(client, photo)
            before = alive()
            for _ in range(3):
                await ask_everything(client, photo)
            await asyncio.sleep(0.1)
            after = alive()
            assert sum((after - before).values()) <= 2, after - before
            assert "amdim_queue_images 0.0" in (await client.get("/metrics")).text

    asyncio.run(main())


async def answer(app: Any, path: str, body: bytes, content_type: bytes) -> int:
    """Asks the application itself, since clients leave circles of their own behind."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        statuses.append(message.get("status", 0))

    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": headers,
    }
    await app(scope, receive, send)
    return statuses[0]


@pytest.mark.parametrize(
    ("path", "content_type", "cut", "status"),
    [
        ("/embed", b"image/jpeg", None, 200),
        ("/embed", b"image/jpeg", 300, 422),
        ("/embed", b"image/jpeg", 2, 415),
        ("/embed", b"image/jpeg", 0, 400),
        ("/embed", b"image/jpeg", None, 429),
        ("/embed", b"application/json", None, 400),
        ("/embed", b"multipart/form-data; boundary=x", None, 400),
        ("/match", b"multipart/form-data; boundary=x", None, 400),
        ("/v1/embeddings", b"application/json", None, 400),
        ("/v2/models/amdim/infer", b"application/json", None, 400),
    ],
)
def test_an_answered_request_waits_for_no_garbage_collection(
    tmp_path: Path,
    publish: Callable[..., Path],
    make_picture: Picture,
    path: str,
    content_type: bytes,
    cut: int | None,
    status: int,
) -> None:
    models = publish(tmp_path / "models")
    body = make_picture((300, 200))[:cut]

    async def main() -> None:
        settings = Settings(model_repository=models, threads=1, drain_timeout=0.1)
        gateway = build_gateway(settings)
        app = create_app(Deployment(gateway, reopen_gateway))
        async with app.lifespan():
            if status == 429:
                gateway.service.batcher.admit(gateway.settings.queue_images, ("embedding",))
            for _ in range(3):
                assert await answer(app, path, body, content_type) == status
            gc.collect()
            gc.disable()
            try:
                for _ in range(10):
                    await answer(app, path, body, content_type)
                assert gc.collect() < 10
            finally:
                gc.enable()

    asyncio.run(main())


def test_reloads_leave_no_thread_and_no_service_behind(
    tmp_path: Path, publish: Callable[..., Path], make_picture: Picture
) -> None:
    models = publish(tmp_path / "models")

    async def main() -> None:
        gateway = build_gateway(Settings(model_repository=models, threads=1))
        deployment = Deployment(gateway, reopen_gateway)
        app = create_app(deployment)
        async with app.lifespan():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                threads = 0
                for number in range(2, 7):
                    publish(models, version_name=str(number), seed=number)
                    assert await deployment.reload()
                    answer = await client.post("/embed", content=make_picture())
                    assert answer.json()["version"] == str(number)
                    for _ in range(100):
                        if not deployment._retiring:
                            break
                        await asyncio.sleep(0.02)
                    await asyncio.sleep(0.05)
                    threads = threads or len(ours())
                    assert len(ours()) == threads
                gc.collect()
                services = [o for o in gc.get_objects() if type(o).__name__ == "EmbedService"]
                assert len(services) <= 2

    asyncio.run(main())
    deadline = time.monotonic() + 5
    while ours() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ours() == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_process_keeps_no_descriptor_and_no_thread(
    running_server: Running, repository: Path, make_picture: Picture
) -> None:
    photo = make_picture((300, 200))

    def seen(pid: int) -> tuple[int, int]:
        return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))

    def ask(server: Any) -> None:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            for body in (photo, photo[:200], b"", b"text"):
                client.post("/embed", content=body)
            client.post("/embed", files=[("images", photo)] * 20)
        for sent in (b"", b"GET /livez", b"POST /embed HTTP/1.1\r\nContent-Length: 9\r\n\r\nab"):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(sent)
        with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            pixels = np.zeros((4, 32, 32, 3), np.uint8)
            tensor = grpc.InferInput("images", list(pixels.shape), "UINT8")
            tensor.set_data_from_numpy(pixels)
            client.infer("amdim", [tensor])

    with running_server(repository, "--drain-delay", "0") as server:
        for _ in range(3):
            ask(server)
        time.sleep(0.3)
        before = seen(server.process.pid)
        for _ in range(15):
            ask(server)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            after = seen(server.process.pid)
            if after <= before:
                break
            time.sleep(0.1)
        # gRPC's own poller threads come and go by a few.
        assert after[0] <= before[0] and after[1] <= before[1] + 3
        assert server.stop() == 0
