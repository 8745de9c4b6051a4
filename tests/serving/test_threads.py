from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from amdim_serving.errors import ItemError
from amdim_serving.threads import ThreadPool


def run_with(
    scenario: Callable[[ThreadPool], Awaitable[None]], *, threads: int = 1, limit_s: float = 5.0
) -> None:
    async def main() -> None:
        pool = ThreadPool(threads=threads, limit_s=limit_s)
        pool.start()
        await scenario(pool)
        pool.close()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_results_and_errors_come_back() -> None:
    async def scenario(pool: ThreadPool) -> None:
        assert await pool.submit(lambda: 3).future == 3
        with pytest.raises(ZeroDivisionError):
            await pool.submit(lambda: 1 / 0).future

    run_with(scenario)


def test_a_call_that_runs_too_long_is_answered_in_time_and_returns_later() -> None:
    async def scenario(pool: ThreadPool) -> None:
        stuck = threading.Event()
        task = pool.submit(stuck.wait)
        started = time.monotonic()
        with pytest.raises(ItemError) as failure:
            await task.future
        assert failure.value.code == "deadline_exceeded"
        assert time.monotonic() - started < 2
        assert not task.returned
        returned = asyncio.Event()
        task.when_returned(returned.set)
        assert not returned.is_set()
        stuck.set()
        await returned.wait()
        assert task.returned

    run_with(scenario, limit_s=0.1)


def test_a_call_whose_caller_left_is_not_run() -> None:
    async def scenario(pool: ThreadPool) -> None:
        hold = threading.Event()
        ran: list[int] = []
        first = pool.submit(hold.wait)
        second = pool.submit(lambda: ran.append(2))
        returned = asyncio.Event()
        second.future.cancel()
        second.when_returned(returned.set)
        hold.set()
        await first.future
        await returned.wait()
        assert ran == []

    run_with(scenario)


def test_an_urgent_call_goes_before_what_waits() -> None:
    async def scenario(pool: ThreadPool) -> None:
        hold = threading.Event()
        ran: list[str] = []
        pool.submit(hold.wait)
        later = pool.submit(lambda: ran.append("later"))
        urgent = pool.submit(lambda: ran.append("urgent"), urgent=True)
        hold.set()
        await asyncio.gather(later.future, urgent.future)
        assert ran == ["urgent", "later"]

    run_with(scenario)


def test_slow_calls_do_not_stop_the_others() -> None:
    async def scenario(pool: ThreadPool) -> None:
        hold = threading.Event()
        slow = [pool.submit(hold.wait) for _ in range(2)]
        assert pool.free == 0
        assert await asyncio.wait_for(pool.submit(lambda: 3).future, 2) == 3
        hold.set()
        await asyncio.gather(*(task.future for task in slow))
        assert pool.free == 2
        assert [await pool.submit(lambda: 4).future for _ in range(3)] == [4] * 3

    run_with(scenario, threads=2)


def test_the_pool_says_when_a_thread_is_free() -> None:
    async def scenario(pool: ThreadPool) -> None:
        told: list[int] = []
        pool.on_free = lambda: told.append(pool.free)
        tasks = [pool.submit(lambda: None) for _ in range(3)]
        await asyncio.gather(*(task.future for task in tasks))
        assert told[-1] == 2
        assert pool.is_idle

    run_with(scenario, threads=2)
