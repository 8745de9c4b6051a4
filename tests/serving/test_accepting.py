"""Connections are shared among processes on one listener, and none is left waiting."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from amdim_serving.accepting import AWAY, Acceptor, Shares


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen(64)
        made.setblocking(False)
        yield made


class Greeter(asyncio.Protocol):
    """Says the name of who took the connection."""

    def __init__(self, name: bytes, open_here: set[Greeter]) -> None:
        self.name, self.open_here = name, open_here

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.open_here.add(self)
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.name)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_here.discard(self)


def acceptor(
    listener: socket.socket, counts: list[int], number: int
) -> tuple[Acceptor, set[Greeter]]:
    open_here: set[Greeter] = set()
    name = str(number).encode()
    made = Acceptor(
        listener,
        lambda: Greeter(name, open_here),
        lambda: len(open_here),
        Shares(counts, number),
    )
    return made, open_here


async def greeted(listener: socket.socket) -> tuple[str, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    return (await asyncio.wait_for(reader.readexactly(1), 5)).decode(), writer


async def close_all(writers: list[asyncio.StreamWriter]) -> None:
    for writer in writers:
        writer.close()
        await writer.wait_closed()


def test_two_on_one_listener_get_equal_shares(listener: socket.socket) -> None:
    async def main() -> None:
        counts = [AWAY, AWAY]
        with listener.dup() as other:  # epoll takes each descriptor once
            other.setblocking(False)
            first, _ = acceptor(listener, counts, 0)
            second, _ = acceptor(other, counts, 1)
            first.start()
            second.start()
            taken = [await greeted(listener) for _ in range(20)]
            assert sorted(name for name, _ in taken) == ["0"] * 10 + ["1"] * 10
            assert counts == [10, 10]
            await close_all([writer for _, writer in taken])
            first.stop()
            second.stop()
            assert counts == [AWAY, AWAY]

    asyncio.run(main())


def test_what_the_one_whose_turn_it_is_leaves_is_taken_anyway(listener: socket.socket) -> None:
    async def main() -> None:
        counts = [AWAY, 0]  # the other has none, and is stuck
        first, _ = acceptor(listener, counts, 0)
        first.start()
        taken = [await greeted(listener) for _ in range(5)]
        assert [name for name, _ in taken] == ["0"] * 5
        await close_all([writer for _, writer in taken])
        first.stop()

    asyncio.run(main())


def test_a_stopped_one_takes_nothing_and_a_later_one_what_waited(listener: socket.socket) -> None:
    async def main() -> None:
        counts = [AWAY, AWAY]
        first, _ = acceptor(listener, counts, 0)
        first.start()
        first.stop()
        waiting = asyncio.create_task(greeted(listener))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        second, _ = acceptor(listener, counts, 1)
        second.start()
        name, writer = await waiting
        assert name == "1"
        await close_all([writer])
        second.stop()

    asyncio.run(main())


def test_it_goes_on_after_the_files_ran_out(
    listener: socket.socket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amdim_serving.accepting._PAUSE_S", 0.05)

    class Full:
        """A listener whose first accept fails as it does without a free descriptor."""

        def __init__(self, real: socket.socket) -> None:
            self.real, self.fileno, self.failed = real, real.fileno, False

        def accept(self) -> tuple[socket.socket, object]:
            if not self.failed:
                self.failed = True
                raise OSError(24, "Too many open files")
            return self.real.accept()

    async def main() -> None:
        full = Full(listener)
        first, _ = acceptor(full, [AWAY], 0)  # type: ignore[arg-type]
        first.start()
        name, writer = await greeted(listener)
        assert name == "0" and full.failed
        await close_all([writer])
        first.stop()

    asyncio.run(main())
    assert "Too many open files" in caplog.text
