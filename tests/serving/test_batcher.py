from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from amdim_serving.batcher import Batcher
from amdim_serving.errors import EngineError, OverloadedError, RequestError
from amdim_serving.jobs import BatchRow

Pixels = NDArray[np.uint8]


def image(value: int) -> Pixels:
    return np.full((2, 2, 3), value, np.uint8)


@dataclass
class FakeEngine:
    """Answers each image with its first value; can be held, slowed down and made to fail."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    fail: bool = False
    slow_s: float = 0.0
    batches: list[list[int]] = field(default_factory=list)
    outputs: list[tuple[str, ...]] = field(default_factory=list)

    async def run(self, images: Sequence[Pixels], outputs: Sequence[str]) -> list[int]:
        values = [int(pixels.flat[0]) for pixels in images]
        self.batches.append(values)
        self.outputs.append(tuple(outputs))
        await self.gate.wait()
        await asyncio.sleep(self.slow_s)
        if self.fail:
            raise ValueError("a fault of the engine's own")
        return values


def value(row: BatchRow[list[int]]) -> int:
    return row.batch[row.row]


def run_with(
    scenario: Callable[[Batcher[list[int]], FakeEngine], Awaitable[None]],
    *,
    held: bool = False,
    max_batch_size: int = 4,
    queue_images: int = 64,
    max_queue_delay_s: float = 0.0,
) -> None:
    async def main() -> None:
        engine = FakeEngine()
        if not held:
            engine.gate.set()
        batcher: Batcher[list[int]] = Batcher(
            engine.run,
            max_batch_size=max_batch_size,
            queue_images=queue_images,
            max_queue_delay_s=max_queue_delay_s,
        )
        batcher.start()
        await scenario(batcher, engine)
        engine.gate.set()
        await batcher.close(1.0)
        assert batcher.admitted == 0
        assert batcher.waiting == 0

    asyncio.run(asyncio.wait_for(main(), 10))


async def embed(
    batcher: Batcher[list[int]], *values: int, outputs: Sequence[str] = ("a",)
) -> list[int]:
    with batcher.admit(len(values), outputs) as job:
        futures = [job.submit(image(number)) for number in values]
        return [value(await future) for future in futures]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_an_idle_engine_takes_an_image_at_once() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        assert await embed(batcher, 7) == [7]
        assert engine.batches == [[7]]

    run_with(scenario)


def test_what_waits_while_the_engine_is_busy_becomes_one_full_batch() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        first = asyncio.create_task(embed(batcher, 0))
        await settle()
        rest = [asyncio.create_task(embed(batcher, number)) for number in range(1, 7)]
        await settle()
        engine.gate.set()
        assert [await task for task in (first, *rest)] == [[n] for n in range(7)]
        assert engine.batches == [[0], [1, 2, 3, 4], [5, 6]]

    run_with(scenario, held=True)


def test_a_delay_gathers_a_full_batch_and_does_not_wait_longer() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        started = time.monotonic()
        tasks = []
        for number in range(4):
            tasks.append(asyncio.create_task(embed(batcher, number)))
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
        assert engine.batches == [[0, 1, 2, 3]]
        assert time.monotonic() - started < 2.0

    run_with(scenario, max_queue_delay_s=5.0)


def test_a_delay_ends_with_a_partial_batch() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        started = time.monotonic()
        await asyncio.gather(embed(batcher, 0), embed(batcher, 1))
        assert engine.batches == [[0, 1]]
        assert time.monotonic() - started >= 0.05

    run_with(scenario, max_queue_delay_s=0.05)


def test_past_the_bound_nothing_is_queued_and_the_answer_says_when_to_come_back() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        first = asyncio.create_task(embed(batcher, 0, 1, 2))
        await settle()
        with pytest.raises(OverloadedError) as refused:
            batcher.admit(2, ("a",))
        assert refused.value.retry_after_s >= 1
        assert batcher.admitted == 3
        second = asyncio.create_task(embed(batcher, 3))
        await settle()
        engine.gate.set()
        assert await first == [0, 1, 2]
        assert await second == [3]
        assert await embed(batcher, 5) == [5]

    run_with(scenario, held=True, queue_images=4)


def test_a_failed_batch_fails_each_of_its_images_and_the_next_one_runs() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        engine.fail = True
        failures = await asyncio.gather(
            *(embed(batcher, number) for number in range(3)), return_exceptions=True
        )
        assert [type(failure) for failure in failures] == [EngineError] * 3
        assert batcher.stats.last_failed
        engine.fail = False
        assert await embed(batcher, 9) == [9]
        assert not batcher.stats.last_failed

    run_with(scenario)


def test_a_cancelled_request_is_not_encoded() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        running = asyncio.create_task(embed(batcher, 0))
        await settle()
        gone = asyncio.create_task(embed(batcher, 1, 2))
        kept = asyncio.create_task(embed(batcher, 3))
        await settle()
        gone.cancel()
        await settle()
        assert batcher.admitted == 2
        engine.gate.set()
        assert await running == [0]
        assert await kept == [3]
        assert engine.batches == [[0], [3]]
        with pytest.raises(asyncio.CancelledError):
            await gone

    run_with(scenario, held=True)


def test_a_cancelled_request_in_the_running_batch_harms_nobody() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        blocker = asyncio.create_task(embed(batcher, 0))
        await settle()
        gone = asyncio.create_task(embed(batcher, 1))
        kept = asyncio.create_task(embed(batcher, 2))
        await settle()
        engine.gate.set()
        await blocker
        gone.cancel()
        assert await kept == [2]

    run_with(scenario, held=True)


def test_a_big_request_is_split_and_comes_back_in_order() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        assert await embed(batcher, *range(11)) == list(range(11))
        assert max(len(batch) for batch in engine.batches) == 4

    run_with(scenario)


def test_a_single_image_does_not_wait_behind_a_thousand() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        big = asyncio.create_task(embed(batcher, *([1] * 1000)))
        await settle()
        single = asyncio.create_task(embed(batcher, 99))
        await settle()
        engine.gate.set()
        assert await single == [99]
        assert next(at for at, batch in enumerate(engine.batches) if 99 in batch) == 1
        assert not big.done()
        await big

    run_with(scenario, held=True, queue_images=2000)


def test_two_big_requests_share_each_batch() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        blocker = asyncio.create_task(embed(batcher, 0))
        await settle()
        tasks = [asyncio.create_task(embed(batcher, *([n] * 8))) for n in (1, 2)]
        await settle()
        engine.gate.set()
        await asyncio.gather(blocker, *tasks)
        assert engine.batches[1:] == [[1, 2, 1, 2]] * 4

    run_with(scenario, held=True)


def test_a_batch_computes_the_union_of_what_its_images_ask_for() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        blocker = asyncio.create_task(embed(batcher, 0, outputs=("a",)))
        await settle()
        others = [
            asyncio.create_task(embed(batcher, 1, outputs=("b", "a"))),
            asyncio.create_task(embed(batcher, 2, outputs=("c",))),
        ]
        await settle()
        engine.gate.set()
        await asyncio.gather(blocker, *others)
        assert engine.outputs == [("a",), ("a", "b", "c")]

    run_with(scenario, held=True)


def test_what_is_past_its_deadline_is_not_encoded() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        blocker = asyncio.create_task(embed(batcher, 0))
        await settle()
        with batcher.admit(2, ("a",), deadline=time.monotonic() - 1) as job:
            late = [job.submit(image(1)), job.submit(image(2))]
            engine.gate.set()
            for future in late:
                with pytest.raises(RequestError) as failure:
                    await future
                assert failure.value.code == "deadline_exceeded"
        await blocker
        assert engine.batches == [[0]]

    run_with(scenario, held=True)


def test_shutdown_answers_every_accepted_image_and_refuses_new_ones() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        tasks = [asyncio.create_task(embed(batcher, number)) for number in range(9)]
        await settle()
        closing = asyncio.create_task(batcher.close(5.0))
        await settle()
        with pytest.raises(RequestError) as refused:
            batcher.admit(1, ("a",))
        assert refused.value.code == "draining"
        engine.gate.set()
        assert await asyncio.gather(*tasks) == [[number] for number in range(9)]
        await closing

    run_with(scenario, held=True)


def test_shutdown_does_not_wait_for_ever_and_still_answers() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        running = asyncio.create_task(embed(batcher, 0))
        await settle()
        waiting = asyncio.create_task(embed(batcher, 1))
        await settle()
        closing = asyncio.create_task(batcher.close(0.05))
        with pytest.raises(RequestError) as failure:
            await waiting
        assert failure.value.code == "draining"
        engine.gate.set()
        assert await running == [0]
        await closing

    run_with(scenario, held=True)


def test_a_job_admitted_before_shutdown_may_still_submit() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        with batcher.admit(1, ("a",)) as job:
            closing = asyncio.create_task(batcher.close(5.0))
            await settle()
            assert value(await job.submit(image(4))) == 4
        await closing

    run_with(scenario)


def test_a_detached_permit_is_held_until_it_is_given_back() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        with batcher.admit(2, ("a",)) as job:
            give_back = job.detach()
        assert batcher.admitted == 1
        give_back()
        assert batcher.admitted == 0

    run_with(scenario)


def test_what_could_not_be_done_in_time_is_refused_at_once() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine) -> None:
        engine.slow_s = 0.05  # 80 images a second
        load = [asyncio.create_task(embed(batcher, *([1] * 40))) for _ in range(10)]
        await asyncio.sleep(1.5)
        soon = time.monotonic() + 0.1
        with pytest.raises(OverloadedError) as refused:
            batcher.admit(20, ("a",), deadline=soon)
        assert refused.value.retry_after_s >= 1
        with batcher.admit(20, ("a",), deadline=time.monotonic() + 60):
            pass
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)

    run_with(scenario, queue_images=1000)


def run_beside_other_work(
    scenario: Callable[[Batcher[list[int]], FakeEngine, list[int]], Awaitable[None]],
) -> None:
    """As `run_with`, on two cores that other work may hold; `free[0]` of them are free."""

    async def main() -> None:
        engine, free = FakeEngine(), [2]
        engine.gate.set()

        def run(images: Sequence[Pixels], outputs: Sequence[str]) -> asyncio.Future[list[int]]:
            free[0] -= 1  # as it is called, not when it is awaited
            return asyncio.ensure_future(engine.run(images, outputs))

        batcher: Batcher[list[int]] = Batcher(
            run,
            max_batch_size=16,
            queue_images=64,
            instances=2,
            free=lambda: max(0, free[0]),
        )
        batcher.start()
        await scenario(batcher, engine, free)
        await batcher.close(1.0)

    asyncio.run(asyncio.wait_for(main(), 10))


def test_idle_cores_share_what_waits() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine, free: list[int]) -> None:
        assert await embed(batcher, *range(12)) == list(range(12))
        assert [len(values) for values in engine.batches] == [6, 6]

    run_beside_other_work(scenario)


def test_a_small_batch_lets_other_work_go_first_but_does_not_wait_for_long() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine, free: list[int]) -> None:
        free[0] = 0
        small = asyncio.create_task(embed(batcher, 1, 2))
        await settle()
        assert engine.batches == []
        assert await small == [1, 2]
        assert engine.batches == [[1, 2]]

    run_beside_other_work(scenario)


def test_a_full_batch_goes_before_other_work() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine, free: list[int]) -> None:
        free[0] = 0
        less = asyncio.create_task(embed(batcher, *range(15)))
        await settle()
        assert engine.batches == []
        last = asyncio.create_task(embed(batcher, 15))
        await settle()
        assert sorted(engine.batches[0]) == list(range(16))
        await asyncio.gather(less, last)

    run_beside_other_work(scenario)


def test_a_core_that_becomes_free_takes_what_waits() -> None:
    async def scenario(batcher: Batcher[list[int]], engine: FakeEngine, free: list[int]) -> None:
        free[0] = 0
        small = asyncio.create_task(embed(batcher, 1))
        await settle()
        free[0] = 1
        batcher.poke()
        await settle()
        assert engine.batches == [[1]]
        await small

    run_beside_other_work(scenario)
