"""Continuous batching: when the engine is free it takes what waits.

Counts images, not requests; knows no HTTP and no model. Everything but the `run` callable lives on
one event loop, so there is no lock. Each admitted image gets exactly one answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic

from amdim_serving.errors import EngineError, OverloadedError, RequestError
from amdim_serving.jobs import BatchRow, BatchT, Job, Pixels, Waiting
from amdim_serving.pace import Pace

Run = Callable[[Sequence[Pixels], Sequence[str]], Awaitable[BatchT]]

_log = logging.getLogger(__name__)

# A request is refused when the work before it is likely to take this share of its time.
_HOPE = 0.9
# Where decoding wants the same cores, a batch goes before it once it is full or an image has waited
# so long; otherwise when a core has nothing else to do. What a core decoded in between has pushed
# the encoder's weights out of its cache, so that an image in a batch of 4 costs half as much again
# as in one of 16 (int8, benchmarks/README.md).
_PATIENCE_S = 0.05
# Larger batches are split over idle cores; smaller ones would cost more an image.
_LEAST_SHARE = 4


@dataclass(slots=True)
class BatcherStats:
    """What the batcher has done so far."""

    batches: int = 0
    images: int = 0
    busy_s: float = 0.0
    last_good: float = field(default_factory=time.monotonic)
    """Monotonic time of the last batch that ran to its end."""
    last_failed: bool = False


class Batcher(Generic[BatchT]):
    """Forms batches out of the images that wait, fairly between jobs.

    Args:
        run: Encodes a list of images for the union of the outputs asked for; awaited, so it may
            leave the event loop. It must not be cancelled half way. Where `free` is given it
            takes its turn as it is called, not when it is awaited.
        max_batch_size: Images in a batch, at most.
        max_queue_delay_s: How long a batch that is not full may wait for more; 0: not at all.
        queue_images: Images admitted at once.
        instances: Batches in flight at once.
        free: Says how many batches would start at once, where they take turns with other work on
            the same cores; `poke` is then due whenever there are more. None: they do not.
        on_batch: Told of each batch that ran to its end: its images and its seconds.
    """

    def __init__(
        self,
        run: Run[BatchT],
        *,
        max_batch_size: int,
        queue_images: int,
        max_queue_delay_s: float = 0.0,
        instances: int = 1,
        free: Callable[[], int] | None = None,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._run = run
        self._max_batch_size = max_batch_size
        self._queue_images = queue_images
        self._delay_s = max_queue_delay_s
        self._instances = instances
        self._free = free
        self._on_batch = on_batch
        self._ring: deque[Job[BatchT]] = deque()
        self._waiting = 0
        self._admitted = 0
        self._closing = False
        self._stopped = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dispatch: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Future[BatchT]] = set()
        self._jobs = 0
        self._pace = Pace()
        self._load = 2 * max_batch_size * instances
        self.stats = BatcherStats()

    @property
    def waiting(self) -> int:
        """Images queued and not yet in a batch."""
        return self._waiting

    @property
    def admitted(self) -> int:
        """Permits taken and not yet given back."""
        return self._admitted

    @property
    def closing(self) -> bool:
        """Whether new work is refused."""
        return self._closing

    def start(self) -> None:
        """Starts taking batches; needs the running event loop."""
        self._loop = asyncio.get_running_loop()

    def admit(
        self,
        images: int,
        outputs: Sequence[str],
        *,
        deadline: float = float("inf"),
        privileged: bool = False,
    ) -> Job[BatchT]:
        """Takes permits for a request before anything of it is queued.

        Args:
            images: How many images the job may submit.
            outputs: What each of them asks for.
            deadline: `time.monotonic()` after which nothing of it is run.
            privileged: Past the bound; for the server's own health checks.

        Raises:
            OverloadedError: There are not so many permits, or the deadline would pass first.
            RequestError: draining.
        """
        if self._closing:
            raise RequestError("draining")
        now = time.monotonic()
        if not privileged:
            self.require_room(images, deadline - now)
        self._admitted += images
        self._jobs += 1
        self._idle.clear()
        if self._admitted >= self._load:
            self._pace.begin(now)
        return Job(self, images, outputs, deadline)

    def require_room(self, images: int, seconds: float) -> None:
        """Refuses what `admit` would refuse, and takes nothing.

        Args:
            images: Of a job.
            seconds: Until its deadline.

        Raises:
            OverloadedError: There are not so many permits, or the deadline would pass first.
        """
        if self._admitted + images > self._queue_images:
            raise OverloadedError(self._retry_after_s())
        # In turn with the others: before this job ends, each of them gets as many images.
        ahead = min(self._admitted, self._jobs * images)
        wait_s = self._pace.seconds_for(ahead + images)
        if wait_s and wait_s > _HOPE * seconds:
            raise OverloadedError(self._retry_after_s())

    def enqueue(
        self, job: Job[BatchT], pixels: Pixels, permits: int = 1
    ) -> asyncio.Future[BatchRow[BatchT]]:
        """Queues one image of a job; its permits are released with its answer."""
        assert self._loop is not None, "start() comes first"
        future: asyncio.Future[BatchRow[BatchT]] = self._loop.create_future()
        if self._stopped:
            self.release(permits)
            future.set_exception(RequestError("draining"))
            return future
        if not job.waiting:
            self._ring.append(job)
        job.waiting.append(Waiting(pixels, future, permits))
        self._waiting += permits
        self.poke()
        return future

    def poke(self) -> None:
        """Looks soon whether a batch may start; what is queued until then is still part of it."""
        if self._dispatch is None and self._waiting and len(self._running) < self._instances:
            assert self._loop is not None, "start() comes first"
            self._dispatch = self._loop.call_soon(self._start_batches)

    def drop(self, job: Job[BatchT], error: RequestError | None = None) -> None:
        """Takes a job's waiting images out; they are cancelled, or fail with `error`."""
        if not job.waiting:
            return
        self._ring.remove(job)
        dropped = list(job.waiting)
        job.waiting.clear()
        permits = sum(item.permits for item in dropped)
        self._waiting -= permits
        for item in dropped:
            item.settle(error)
        self.release(permits)

    def release(self, images: int = 1) -> None:
        """Gives permits back."""
        self._admitted -= images
        if self._admitted < self._load:
            self._pace.pause()
        if self._admitted == 0:
            self._idle.set()

    def leave(self) -> None:
        """A job has ended."""
        self._jobs -= 1

    async def close(self, timeout_s: float = 30.0) -> None:
        """Refuses new work, lets accepted work finish, then stops.

        What is not done after `timeout_s` fails with `RequestError` (draining).
        """
        self._closing = True
        self.poke()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        self._stopped = True
        for job in list(self._ring):
            self.drop(job, RequestError("draining"))
        self._stop_timer()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _start_batches(self) -> None:
        """Starts every batch that is due, and sees to it that the next one is looked at."""
        assert self._loop is not None
        self._dispatch = None
        self._stop_timer()
        while self._waiting and len(self._running) < self._instances:
            wait_s = self._seconds_to_wait()
            if wait_s > 0:
                self._timer = self._loop.call_later(wait_s, self._start_overdue)
                return
            self._start_batch(self._share())

    def _start_overdue(self) -> None:
        """Starts a batch that has waited long enough, however small."""
        self._timer = None
        if self._waiting and len(self._running) < self._instances:
            self._start_batch(self._max_batch_size)
        self.poke()

    def _start_batch(self, limit: int) -> None:
        jobs, items = self._take(limit)
        if items:
            outputs = tuple(sorted({name for job in jobs for name in job.outputs}))
            ran = asyncio.ensure_future(self._run([item.pixels for item in items], outputs))
            self._running.add(ran)
            ran.add_done_callback(partial(self._finish, items, time.monotonic()))

    def _seconds_to_wait(self) -> float:
        """Returns how long what waits should wait on for company or for a core; 0: no longer."""
        if self._waiting >= self._max_batch_size or self._closing:
            return 0.0
        if self._delay_s:
            patience_s = self._delay_s
        elif self._free is None or self._free() > 0:
            return 0.0
        else:
            patience_s = _PATIENCE_S
        oldest = min(job.waiting[0].since for job in self._ring)
        return oldest + patience_s - time.monotonic()

    def _share(self) -> int:
        """Returns the size of the next batch, at most: on idle cores each gets a part."""
        if self._free is None or self._free() < 2:
            return self._max_batch_size
        return min(self._max_batch_size, max(_LEAST_SHARE, -(-self._waiting // self._free())))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _finish(
        self, items: list[Waiting[BatchT]], started: float, ran: asyncio.Future[BatchT]
    ) -> None:
        """Gives each image of a batch its answer."""
        self._running.discard(ran)
        error = asyncio.CancelledError() if ran.cancelled() else ran.exception()
        permits = sum(item.permits for item in items)
        infer_s = self._account(len(items), permits, started, failed=error is not None)
        if error is not None:
            known = error if isinstance(error, EngineError) else EngineError("the batch failed")
            if not known.is_elsewhere:
                _log.error("a batch of %d images failed", len(items), exc_info=error)
            for item in items:
                item.settle(type(known)(*known.args))
        else:
            for row, item in enumerate(items):
                if not item.future.done():
                    queue_s = started - item.since
                    item.future.set_result(BatchRow(ran.result(), row, queue_s, infer_s))
        self.release(permits)
        self.poke()

    def _take(self, limit: int) -> tuple[set[Job[BatchT]], list[Waiting[BatchT]]]:
        """Takes live images of up to `limit` permits, or one of more, one of each job in turn."""
        jobs: set[Job[BatchT]] = set()
        items: list[Waiting[BatchT]] = []
        taken = 0
        now = time.monotonic()
        while self._ring and taken < limit:
            job = self._ring[0]
            if job.deadline <= now:
                self.drop(job, RequestError("deadline_exceeded"))
                continue
            if items and taken + job.waiting[0].permits > limit:
                break
            self._ring.popleft()
            item = job.waiting.popleft()
            self._waiting -= item.permits
            if job.waiting:
                self._ring.append(job)
            if item.future.done():  # its caller left
                self.release(item.permits)
                continue
            taken += item.permits
            jobs.add(job)
            items.append(item)
        return jobs, items

    def _account(self, images: int, permits: int, started: float, *, failed: bool) -> float:
        now = time.monotonic()
        spent_s = now - started
        self.stats.batches += 1
        self.stats.images += images
        self.stats.busy_s += spent_s
        self._pace.done(permits, now)
        self.stats.last_failed = failed
        if not failed:
            self.stats.last_good = now
        if self._on_batch is not None and not failed:
            self._on_batch(images, spent_s)
        return spent_s

    def _retry_after_s(self) -> int:
        """Seconds in which half the queue will have emptied at the pace so far, from 1 to 30."""
        return int(min(30, max(1, self._pace.seconds_for(self._admitted) / 2)))
