"""A new version takes over while requests run: none is dropped, and a bad one changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from amdim_serving.app import create_app
from amdim_serving.deployment import Deployment
from amdim_serving.errors import RequestError
from amdim_serving.gateway import Gateway, build_gateway, reopen_gateway
from amdim_serving.settings import Settings

Publish = Callable[..., Path]
Running = Callable[..., contextlib.AbstractContextManager[Any]]
ADMIN = {"Authorization": "Bearer root"}


@pytest.fixture
def models(tmp_path: Path, publish: Publish) -> Path:
    return publish(tmp_path / "models")


@contextlib.asynccontextmanager
async def deployed(models: Path, **settings: Any) -> Any:
    values = {"model_repository": models, "threads": 1, **settings}
    deployment = Deployment(build_gateway(Settings(**values)), reopen_gateway)
    app = create_app(deployment)
    async with app.lifespan():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield deployment, client


def test_requests_in_flight_meet_both_versions_and_no_error(
    models: Path, publish: Publish, make_picture: Callable[..., bytes]
) -> None:
    photo = make_picture((200, 200))

    async def main() -> None:
        async with deployed(models) as (deployment, client):
            seen: list[tuple[int, str, str]] = []
            stop = asyncio.Event()

            async def ask() -> None:
                while not stop.is_set():
                    answer = await client.post("/embed", content=photo)
                    body = answer.json()
                    seen.append((answer.status_code, body["version"], body["artifact_digest"]))

            first = deployment.current
            clients = [asyncio.create_task(ask()) for _ in range(6)]
            await asyncio.sleep(0.2)
            publish(models, version_name="2", seed=1)
            assert await deployment.reload() is True
            await asyncio.sleep(0.2)
            stop.set()
            await asyncio.gather(*clients)
            assert {status for status, _, _ in seen} == {200}
            counted = Counter(version for _, version, _ in seen)
            assert counted.keys() == {"1", "2"} and min(counted.values()) > 3
            assert len({(version, digest) for _, version, digest in seen}) == 2
            assert seen[-1][1] == "2"
            await asyncio.sleep(0.2)
            assert first.service.batcher.closing and first.requests == 0
            metrics = (await client.get("/metrics")).text
            assert 'amdim_reloads_total{outcome="replaced"} 1.0' in metrics
            assert metrics.count("amdim_build_info{") == 1
            assert 'model_version="2"' in metrics

    asyncio.run(main())


def test_a_request_whose_body_arrives_during_the_reload_keeps_its_version(
    models: Path, publish: Publish, make_picture: Callable[..., bytes]
) -> None:
    photo = make_picture()

    async def main() -> None:
        async with deployed(models) as (deployment, client):
            reloaded = asyncio.Event()

            async def slow_body() -> Any:
                yield photo[:100]
                await reloaded.wait()
                yield photo[100:]

            asked = asyncio.create_task(client.post("/embed", content=slow_body()))
            await asyncio.sleep(0.05)
            publish(models, version_name="2", seed=1)
            await deployment.reload()
            await asyncio.sleep(0.2)
            reloaded.set()
            answer = await asked
            assert (answer.status_code, answer.json()["version"]) == (200, "1")
            later = await client.post("/embed", content=photo)
            assert later.json()["version"] == "2"
            infer = "/v2/models/amdim/versions/{}/infer"
            assert (await client.post(infer.format(1), content=b"{}")).status_code == 404
            assert (await client.post(infer.format(2), content=b"{}")).status_code == 400

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["canaries", "file", "config"])
def test_a_version_that_cannot_serve_leaves_the_old_one(
    models: Path, publish: Publish, make_picture: Callable[..., bytes], fault: str
) -> None:
    async def main() -> None:
        async with deployed(models, admin_keys="root") as (deployment, client):
            serving = deployment.current
            publish(models, version_name="2", seed=1, canary_shift=0.5 * (fault == "canaries"))
            if fault == "file":
                (models / "amdim" / "2" / "model.onnx").write_bytes(b"cut short")
            if fault == "config":
                (models / "amdim" / "config.pbtxt").write_text("name: ")
            answer = await client.post("/v2/repository/models/amdim/load", headers=ADMIN)
            assert answer.status_code == 409
            assert str(models) not in answer.text
            assert ("canaries" in answer.text) == (fault == "canaries")
            assert "the old one goes on serving" in answer.text
            assert deployment.current is serving
            told = (await client.post("/embed", content=make_picture())).json()
            assert told["version"] == "1"
            assert 'reloads_total{outcome="failed"} 1.0' in (await client.get("/metrics")).text

    asyncio.run(main())


def test_nothing_newer_is_no_replacement_but_keys_are_read_anew(
    models: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("old\n")

    async def main() -> None:
        async with deployed(models, api_keys_file=keys) as (deployment, client):
            serving = deployment.current
            keys.write_text("new\nsecond\n")
            assert await deployment.reload() is False
            assert deployment.current is serving
            for key, status in (("old", 401), ("new", 200), ("second", 200)):
                answer = await client.get("/model", headers={"X-API-Key": key})
                assert answer.status_code == status

    asyncio.run(main())


def test_only_an_admin_key_may_load(models: Path, publish: Publish) -> None:
    path = "/v2/repository/models/amdim/load"

    async def main() -> None:
        async with deployed(models) as (_, client):
            assert (await client.post(path, headers=ADMIN)).status_code == 404  # off
        publish(models, version_name="2", seed=1)
        async with deployed(models, api_keys="user", admin_keys="root", model_version="1") as (
            deployment,
            client,
        ):
            for headers in ({}, {"X-API-Key": "user"}, {"X-API-Key": "roo"}):
                assert (await client.post(path, headers=headers)).status_code == 401
            other = "/v2/repository/models/resnet/load"
            assert (await client.post(other, headers=ADMIN)).status_code == 404
            pinned = await client.post(path, headers=ADMIN)
            assert pinned.json() == {"version": "1", "replaced": False}
            deployment.drain()
            assert (await client.post(path, headers=ADMIN)).status_code == 503

    asyncio.run(main())


def test_a_fault_of_ours_while_it_loads_changes_nothing_either(models: Path) -> None:
    def reopen(_: Gateway) -> Gateway:
        raise MemoryError

    async def main() -> None:
        gateway = build_gateway(Settings(model_repository=models, threads=1))
        deployment = Deployment(gateway, reopen)
        async with deployment.lifespan():
            with pytest.raises(RequestError, match="reload_failed"):
                await deployment.reload()
            assert deployment.current is gateway and not gateway.draining

    asyncio.run(main())


def test_two_reloads_at_once_take_turns(models: Path, publish: Publish) -> None:
    async def main() -> None:
        async with deployed(models) as (deployment, _):
            publish(models, version_name="2", seed=1)
            replaced = await asyncio.gather(deployment.reload(), deployment.reload())
            assert sorted(replaced) == [False, True]

    asyncio.run(main())


def test_a_drain_while_a_version_loads_does_not_take_it(models: Path) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def reopen(old: Gateway) -> Gateway:
        loading.set()
        go_on.wait(5)
        return reopen_gateway(old)

    async def main() -> None:
        deployment = Deployment(build_gateway(Settings(model_repository=models, threads=1)), reopen)
        async with deployment.lifespan():
            task = asyncio.create_task(deployment.reload())
            await asyncio.to_thread(loading.wait, 5)
            deployment.drain()
            go_on.set()
            with pytest.raises(RequestError, match="draining"):
                await task

    asyncio.run(main())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_hangup_reloads_the_process_under_load(
    running_server: Running,
    models: Path,
    publish: Publish,
    make_picture: Callable[..., bytes],
    workers: str,
) -> None:
    photo = make_picture((200, 200))
    seen: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask(url: str) -> None:
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                answer = client.post(url + "/embed", content=photo)
                seen.append((answer.status_code, answer.json().get("version", answer.text)))

    flags = ("--drain-delay", "0", "--workers", workers, "--metrics-port", "0")
    with running_server(models, *flags) as server:
        askers = [threading.Thread(target=ask, args=(server.url,)) for _ in range(4)]
        for asker in askers:
            asker.start()

        def wait_for(version: str) -> None:
            deadline = time.monotonic() + 20
            while seen[-40:] != [(200, version)] * 40 and time.monotonic() < deadline:
                time.sleep(0.02)

        wait_for("1")
        publish(models, version_name="2", seed=1)
        server.process.send_signal(signal.SIGHUP)
        wait_for("2")
        stop.set()
        for asker in askers:
            asker.join()
        assert {status for status, _ in seen} == {200}
        assert {version for _, version in seen} == {"1", "2"}
        assert seen[-40:] == [(200, "2")] * 40
        assert server.stop() == 0


def test_tritons_own_client_loads_with_an_admin_key(
    running_server: Running,
    models: Path,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AMDIM_ADMIN_KEYS", "root")
    with (
        running_server(models, "--grpc-port", "0", "--drain-delay", "0") as server,
        grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client,
    ):
        publish(models, version_name="2", seed=1)
        with pytest.raises(InferenceServerException, match="API key"):
            client.load_model("amdim")
        assert client.get_model_metadata("amdim").versions == ["1"]
        client.load_model("amdim", headers={"authorization": "Bearer root"})
        assert client.get_model_metadata("amdim").versions == ["2"]
