"""A real Triton behind a link that we break: clear answers, recovery without restart, no leak."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import httpx
import numpy as np
import pytest

from amdim_export.repository import roll_back
from amdim_serving.app import create_app
from amdim_serving.deployment import Deployment
from amdim_serving.errors import StartError
from amdim_serving.gateway import build_gateway, reopen_gateway
from amdim_serving.settings import Settings

pytestmark = [pytest.mark.triton, pytest.mark.slow]

TIMEOUT_S = 1.0  # of a batch
ANSWERED_WITHIN_S = 5.0
RECOVERED_WITHIN_S = 8.0
# What gRPC needs before the first batch: settings, window updates, headers. Less than an answer.
HANDSHAKE_BYTES = 2_000


class FaultyLink:
    """A TCP proxy of our own: passes bytes on, or delays, swallows, cuts or refuses them."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.fault = ""
        self.delay_s = 0.0
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self._run(self._listen())

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def refuse(self) -> None:
        """Resets what is connected, and refuses what wants to."""
        self._run(self._close())

    def listen_again(self) -> None:
        self.fault = ""
        self._run(self._listen())

    def close(self) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, work: Awaitable[None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)  # type: ignore[arg-type]

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            self._reset(writer)
        await asyncio.sleep(0.05)  # the pumps end

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            self._reset(writer)
            return
        ends = {writer, up_writer}
        self._open |= ends
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, up_writer, is_answer=False))
                group.create_task(self._pump(up_reader, writer, is_answer=True))
        except* (OSError, EOFError):
            pass
        finally:
            for end in ends:
                self._reset(end)
            self._open -= ends

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        arrived: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive(reader, arrived))
            group.create_task(self._pass_on(arrived, writer, is_answer=is_answer))

    async def _receive(
        self, reader: asyncio.StreamReader, arrived: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        while data := await reader.read(65536):
            arrived.put_nowait((time.monotonic(), data))
        arrived.put_nowait((time.monotonic(), b""))

    async def _pass_on(
        self,
        arrived: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        *,
        is_answer: bool,
    ) -> None:
        passed = 0  # of answers, since they are to be cut
        while True:
            since, data = await arrived.get()
            if is_answer and self.delay_s:  # a long way: what follows is on it at the same time
                await asyncio.sleep(since + self.delay_s - time.monotonic())
            if not data:
                raise EOFError
            if self.fault == "hang":
                continue  # the connection stays, and nothing comes
            # Counted together, and no byte beyond: an answer may come in pieces as short as a
            # handshake, and half of a piece may hold a whole one.
            room = HANDSHAKE_BYTES - passed
            if self.fault == "cut" and is_answer:
                passed += len(data)
                if len(data) > room:
                    writer.write(data[:room])
                    await writer.drain()
                    raise EOFError
            else:
                passed = 0
            writer.write(data)
            await writer.drain()

    @staticmethod
    def _reset(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


@pytest.fixture
def link(triton) -> Iterator[FaultyLink]:
    between = FaultyLink(triton.port + 1)
    yield between
    between.close()


class Gateway:
    """The gateway in this process, and what is asked of it."""

    def __init__(self, deployment: Deployment, client: httpx.AsyncClient, photo: bytes) -> None:
        self.deployment, self.client, self.photo = deployment, client, photo

    async def ask(self) -> int:
        answer = await self.client.post("/embed?outputs=local7,local5,global", content=self.photo)
        if answer.status_code != 200:
            said = answer.json()["error"]
            assert said["message"].endswith(".")
            assert "127.0.0.1" not in answer.text and "grpc" not in answer.text.lower()
        return answer.status_code

    async def storm(self, requests: int = 12) -> Counter[int]:
        """Asks much at once; every request has its answer in time and gives its permit back."""
        async with asyncio.timeout(ANSWERED_WITHIN_S):
            codes = Counter(await asyncio.gather(*(self.ask() for _ in range(requests))))
        assert self.deployment.current.service.batcher.admitted == 0
        return codes

    async def is_ready(self) -> bool:
        return (await self.client.get("/readyz")).status_code == 200

    async def recover(self) -> float:
        """Waits until it serves again; returns the seconds."""
        started = time.monotonic()
        while await self.ask() != 200:
            assert time.monotonic() - started < RECOVERED_WITHIN_S, "it does not recover"
            await asyncio.sleep(0.1)
        assert await self.is_ready()
        assert await self.storm() == {200: 12}
        return time.monotonic() - started


@pytest.fixture
def with_gateway(repository, link, photos):
    """Runs a check of a gateway that reaches Triton through the link."""

    def run(check: Callable[[Gateway], Awaitable[None]], **changes) -> None:
        values = {
            "model_repository": repository,
            "engine": "triton",
            "triton_url": link.address,
            "triton_seconds": TIMEOUT_S,
            **changes,
        }

        async def main() -> None:
            gateway = await asyncio.to_thread(build_gateway, Settings(**values))
            deployment = Deployment(gateway, reopen_gateway)
            app = create_app(deployment)
            async with app.lifespan():
                transport = httpx.ASGITransport(app, raise_app_exceptions=False)
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://test", timeout=30
                ) as client:
                    tested = Gateway(deployment, client, photos[0])
                    assert await tested.storm() == {200: 12}
                    assert await tested.is_ready()
                    await check(tested)

        threads = threading.active_count()
        asyncio.run(main())
        deadline = time.monotonic() + 5
        while threading.active_count() > threads and time.monotonic() < deadline:
            time.sleep(0.05)
        assert threading.active_count() <= threads

    return run


def test_refused_and_back(with_gateway, link) -> None:
    async def check(gateway: Gateway) -> None:
        link.refuse()
        await asyncio.sleep(0.2)
        assert (await gateway.storm()).keys() == {503}
        assert not await gateway.is_ready()
        assert (await gateway.client.get("/livez")).status_code == 200
        link.listen_again()
        await gateway.recover()

    with_gateway(check)


def test_hung_and_back(with_gateway, link) -> None:
    async def check(gateway: Gateway) -> None:
        link.fault = "hang"
        codes = await gateway.storm()
        assert codes.keys() <= {503, 504} and codes[504] >= 1
        assert not await gateway.is_ready()
        link.fault = ""
        await gateway.recover()

    with_gateway(check)


def test_slow_is_only_slow(with_gateway, link) -> None:
    async def check(gateway: Gateway) -> None:
        link.delay_s = 0.2
        assert await gateway.storm() == {200: 12}
        link.delay_s = 0.0
        assert await gateway.is_ready()

    with_gateway(check)


def test_too_slow_is_told_and_over_when_it_is(with_gateway, link) -> None:
    async def check(gateway: Gateway) -> None:
        link.delay_s = TIMEOUT_S + 0.5
        codes = await gateway.storm()
        assert codes.keys() <= {503, 504} and codes[504] >= 1
        link.delay_s = 0.0
        await gateway.recover()

    with_gateway(check)


def test_cut_in_the_middle_of_an_answer_and_back(with_gateway, link) -> None:
    async def check(gateway: Gateway) -> None:
        link.fault = "cut"
        codes = await gateway.storm()
        assert codes.keys() <= {502, 503, 504}
        assert not await gateway.is_ready()
        link.fault = ""
        await gateway.recover()

    with_gateway(check)


def test_killed_and_another_one_in_its_place(with_gateway, link, start_triton, repository) -> None:
    async def check(gateway: Gateway) -> None:
        first = await asyncio.to_thread(start_triton, repository)
        link.upstream = first.port + 1
        link.refuse()
        link.listen_again()
        await gateway.recover()
        asking = asyncio.create_task(gateway.storm(40))
        await asyncio.sleep(0.02)
        first.stop(how=signal.SIGKILL)
        assert (await asking).keys() <= {200, 502, 503}
        assert (await gateway.storm()).keys() <= {502, 503}
        assert not await gateway.is_ready()
        again = await asyncio.to_thread(start_triton, repository)
        link.upstream = again.port + 1
        await gateway.recover()

    with_gateway(check)


def test_another_version_is_not_served_before_a_reload(
    with_gateway, link, start_triton, repository, tmp_path
) -> None:
    async def check(gateway: Gateway) -> None:
        copy = await asyncio.to_thread(shutil.copytree, repository, tmp_path / "models")
        roll_back(copy, "amdim")
        other = await asyncio.to_thread(start_triton, copy)
        before = gateway.deployment.current.version
        link.upstream = other.port + 1
        link.refuse()
        link.listen_again()
        await asyncio.sleep(0.3)
        assert (await gateway.storm()).keys() == {503}
        assert not await gateway.is_ready()
        assert await gateway.deployment.reload()
        assert gateway.deployment.current.version != before
        await gateway.recover()

    with_gateway(check)


def test_many_faults_leak_neither_permits_nor_threads(with_gateway, link) -> None:
    async def check(gateway: Gateway) -> None:
        rng = np.random.default_rng(0)
        seen: Counter[int] = Counter()
        for fault in rng.permutation(["refuse", "hang", "cut", "slow"] * 2):
            if fault == "refuse":
                link.refuse()
            link.fault, link.delay_s = str(fault), 0.1 * (fault == "slow")
            asking = asyncio.create_task(gateway.storm(6))
            await asyncio.sleep(float(rng.uniform(0, 0.3)))  # lifted while they wait, or after
            if fault == "refuse":
                link.listen_again()
            link.fault, link.delay_s = "", 0.0
            seen += await asking
        assert seen[503] and seen[504]
        assert seen.keys() <= {200, 502, 503, 504}
        await gateway.recover()

    with_gateway(check)


def test_no_triton_at_all_is_told_at_the_start(repository, link) -> None:
    link.refuse()
    settings = Settings(
        model_repository=repository,
        engine="triton",
        triton_url=link.address,
        triton_connect_seconds=0.5,
    )
    with pytest.raises(StartError, match="Triton"):
        build_gateway(settings)
