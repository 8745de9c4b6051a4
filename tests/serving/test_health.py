"""What is said and served while a model's vectors are wrong; faults are put behind real engines."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from numpy.typing import NDArray

from amdim_serving.deployment import Deployment
from amdim_serving.engines import Engine
from amdim_serving.errors import EngineError
from amdim_serving.gateway import Gateway
from amdim_serving.kserve_grpc import create_grpc_server

WINDOWS = "/embed?outputs=windows&scales=1"


@dataclass
class Fault:
    """What goes wrong in an engine, to be changed while it serves."""

    shift: float = 0.0
    fails: bool = False
    held: threading.Event = field(default_factory=threading.Event)
    calls: int = 0


class Faulty:
    """A real engine behind a fault."""

    is_proved = True

    def __init__(self, engine: Engine, fault: Fault) -> None:
        self._engine, self._fault = engine, fault
        self.spec, self.info = engine.spec, engine.info

    def encode(self, images: NDArray[np.uint8], outputs: Sequence[str]) -> Mapping[str, Any]:
        self._fault.calls += 1
        assert self._fault.held.wait(20)
        if self._fault.fails:
            raise EngineError("broken")
        arrays = self._engine.encode(images, outputs)
        return {name: array + np.float32(self._fault.shift) for name, array in arrays.items()}

    def close(self) -> None:
        self._engine.close()


def broken_windows(fault: Fault, seen: list[Gateway] | None = None) -> Callable[[Gateway], None]:
    """Puts a fault behind the windows engine, and lets it be idle."""
    fault.held.set()

    def prepare(gateway: Gateway) -> None:
        windows = gateway.service.windows
        assert windows is not None
        windows.model = replace(windows.model, engine=Faulty(windows.model.engine, fault))
        windows.batcher.stats.last_good -= 3600
        if seen is not None:
            seen.append(gateway)

    return prepare


def shown(metrics: httpx.Response, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", metrics.text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def refused(answer: httpx.Response) -> bool:
    if answer.status_code != 503:
        return False
    assert answer.json()["error"]["code"] == "engine_unavailable"
    return True


def test_wrong_windows_are_refused_while_the_encoder_serves(
    client_for: Any, windows_repository: Path, make_picture: Callable[..., bytes]
) -> None:
    fault = Fault(shift=5.0)
    picture = make_picture()

    async def main() -> None:
        async with client_for(
            model_repository=windows_repository, prepare=broken_windows(fault)
        ) as client:
            ready = 'amdim_model_ready{model="amdim_windows"}'
            metrics = await client.get("/metrics")
            assert shown(metrics, ready) == 1 and shown(metrics, "amdim_canary_cosine") > 0.9999
            for _ in range(2):  # a canary's own batch must not speak for the model
                answer = await client.get("/readyz")
                assert answer.status_code == 200
                assert answer.json()["unavailable"] == ["amdim_windows"]
            assert refused(await client.post(WINDOWS, content=picture))
            assert refused(await client.post(WINDOWS + "&outputs=embedding", content=picture))
            files = [("query", picture), ("candidates", picture), ("windows", (None, "true"))]
            assert refused(await client.post("/match", files=files))
            tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3]}
            body = {"inputs": [{**tensor, "data": [7] * (32 * 32 * 3)}]}
            sent = await client.post("/v2/models/amdim_windows/infer", json=body)
            assert sent.status_code == 503 and "canaries" in sent.json()["error"]
            assert (await client.post("/embed", content=picture)).status_code == 200

            models = (await client.get("/model")).json()["models"]
            assert {name: model["available"] for name, model in models.items()} == {
                "amdim": True,
                "amdim_windows": False,
            }
            index = (await client.post("/v2/repository/index")).json()
            assert {one["name"]: one["state"] for one in index} == {
                "amdim": "READY",
                "amdim_image": "READY",
                "amdim_windows": "UNAVAILABLE",
            }
            codes = [
                (await client.get(f"/v2/{path}")).status_code
                for path in ("models/amdim_windows/ready", "models/amdim/ready", "health/ready")
            ]
            assert codes == [503, 200, 200]
            metrics = await client.get("/metrics")
            assert shown(metrics, ready) == 0 and shown(metrics, "amdim_ready") == 1
            assert shown(metrics, 'amdim_model_ready{model="amdim"}') == 1
            assert shown(metrics, "amdim_canary_cosine") < 0.99

            fault.shift = 0.0
            assert "unavailable" not in (await client.get("/readyz")).json()
            assert (await client.post(WINDOWS, content=picture)).status_code == 200
            metrics = await client.get("/metrics")
            assert shown(metrics, ready) == 1 and shown(metrics, "amdim_canary_cosine") > 0.9999

    asyncio.run(main())


def test_windows_recover_without_a_probe(
    client_for: Any, windows_repository: Path, make_picture: Callable[..., bytes]
) -> None:
    fault = Fault()

    async def main() -> None:
        async with client_for(
            model_repository=windows_repository, prepare=broken_windows(fault)
        ) as client:
            fault.fails = True
            failed = await client.post(WINDOWS, content=make_picture())
            assert failed.json()["error"]["code"] == "internal"
            assert (await client.get("/readyz")).json()["unavailable"] == ["amdim_windows"]
            calls = fault.calls
            both = await asyncio.gather(
                *(client.post(WINDOWS, content=make_picture()) for _ in range(8))
            )
            assert all(map(refused, both)) and fault.calls == calls  # none of them was run
            fault.fails = False
            latest = time.monotonic() + 20
            while (await client.post(WINDOWS, content=make_picture())).status_code != 200:
                assert time.monotonic() < latest, "the model is not tried anew"
                await asyncio.sleep(0.1)

    asyncio.run(main())


def test_windows_that_hang_do_not_hold_readiness(client_for: Any, windows_repository: Path) -> None:
    fault = Fault()

    async def main() -> None:
        async with client_for(
            model_repository=windows_repository, prepare=broken_windows(fault)
        ) as client:
            fault.held.clear()
            try:
                answer = await asyncio.wait_for(client.get("/readyz"), 5)
            finally:
                fault.held.set()
            assert answer.status_code == 200
            assert fault.calls == 1  # it was asked, and had not answered

    asyncio.run(main())


def test_grpc_says_which_model_is_ready(client_for: Any, windows_repository: Path) -> None:
    fault = Fault(shift=5.0)
    gateways: list[Gateway] = []

    async def main() -> None:
        prepare = broken_windows(fault, gateways)
        async with client_for(model_repository=windows_repository, prepare=prepare):
            server = create_grpc_server(Deployment(gateways[0]))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            try:
                async with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
                    assert not await client.is_model_ready("amdim_windows")
                    assert await client.is_model_ready("amdim")
                    assert await client.is_server_ready()
                    index = (await client.get_model_repository_index()).models
                    assert {one.name: one.state for one in index}["amdim_windows"] == "UNAVAILABLE"
                    fault.shift = 0.0
                    assert await client.is_model_ready("amdim_windows")
            finally:
                await server.stop(None)

    asyncio.run(main())


@pytest.mark.parametrize("fails", [False, True])
def test_an_encoder_that_failed_is_unready_and_refused_until_a_canary_reproduces(
    client_for: Any, fails: bool, make_picture: Callable[..., bytes]
) -> None:
    fault = Fault(shift=5.0, fails=fails)
    picture = make_picture()
    fault.held.set()

    def prepare(gateway: Gateway) -> None:
        gateway.service.engine = Faulty(gateway.service.engine, fault)
        gateway.service.batcher.stats.last_good -= 3600

    async def main() -> None:
        async with client_for(prepare=prepare) as client:
            for _ in range(3):  # the batch of a wrong canary ran well, and proves nothing
                assert (await client.get("/readyz")).status_code == 503
            models = (await client.get("/model")).json()["models"]
            assert models["amdim"]["available"] is False
            assert refused(await client.post("/embed", content=picture))
            fault.shift, fault.fails = 0.0, False
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.post("/embed", content=picture)).status_code == 200
            calls = fault.calls
            assert (await client.get("/readyz")).status_code == 200
            assert fault.calls == calls  # a good batch a moment ago is enough

    asyncio.run(main())
