"""A pool of threads that runs calls off the event loop, each with a time limit.

Knows no image format and no HTTP. One hop to a thread and one back; nothing else per call.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from amdim_serving.errors import ItemError

ResultT = TypeVar("ResultT")


class Task(Generic[ResultT]):
    """One call in the pool.

    Attributes:
        future: The answer; fails with `ItemError` (deadline_exceeded) when the call runs too long.
        returned: Whether the call has ended or never will start; it may outlive its answer.
    """

    def __init__(self, call: Callable[[], ResultT], loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.future: asyncio.Future[ResultT] = loop.create_future()
        self.started = 0.0
        self.returned = False
        self.spent_s = 0.0
        self._on_return: Callable[[], None] | None = None

    def when_returned(self, call: Callable[[], None]) -> None:
        """Calls `call` on the event loop once the thread is free of this task."""
        if self.returned:
            call()
        else:
            self._on_return = call

    def finish(self, result: ResultT | None, error: BaseException | None) -> None:
        """Settles the task; on the event loop, once the thread has returned."""
        self.returned = True
        if not self.future.done():
            if error is None:
                self.future.set_result(result)  # type: ignore[arg-type]  # a result, then
            else:
                self.future.set_exception(error)
        if self._on_return is not None:
            self._on_return()


class ThreadPool:
    """Threads that take calls in order.

    Args:
        threads: How many; 0: as many as this process may use cores.
        limit_s: Seconds from a call's start after which its caller gets an error; None: no limit.
        name: Of the threads.
    """

    def __init__(
        self, *, threads: int = 0, limit_s: float | None = None, name: str = "decode"
    ) -> None:
        self._name = name
        self.threads = threads or len(os.sched_getaffinity(0))
        self._limit_s = limit_s
        self._queue: queue.SimpleQueue[Task[object] | None] = queue.SimpleQueue()
        self._open: set[Task[object]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._workers: list[threading.Thread] = []

    def start(self) -> None:
        """Starts the threads; needs the running event loop."""
        self._loop = asyncio.get_running_loop()
        for number in range(self.threads):
            worker = threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True)
            worker.start()
            self._workers.append(worker)

    def submit(self, call: Callable[[], ResultT]) -> Task[ResultT]:
        """Queues a call; a task whose future is cancelled before its turn is not run."""
        assert self._loop is not None, "start() comes first"
        task = Task(call, self._loop)
        self._open.add(task)  # type: ignore[arg-type]  # the set holds tasks of every result
        self._queue.put(task)  # type: ignore[arg-type]
        if self._watch is None and self._limit_s is not None:
            self._watch = self._loop.call_later(self._limit_s / 4, self._check)
        return task

    def close(self) -> None:
        """Lets the threads end after what they are doing; a stuck one is left to the process."""
        for _ in self._workers:
            self._queue.put(None)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _work(self) -> None:
        assert self._loop is not None
        while (task := self._queue.get()) is not None:
            result: object = None
            error: BaseException | None = None
            if not task.future.cancelled():
                task.started = time.monotonic()
                try:
                    result = task.call()
                except BaseException as raised:  # whatever it is, its caller must be told
                    error = raised
                task.spent_s = time.monotonic() - task.started
            try:
                self._loop.call_soon_threadsafe(self._finish, task, result, error)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                return

    def _finish(self, task: Task[object], result: object, error: BaseException | None) -> None:
        self._open.discard(task)
        task.finish(result, error)

    def _check(self) -> None:
        """Answers for the calls that have run too long; they go on until they return."""
        assert self._loop is not None and self._limit_s is not None
        latest_start = time.monotonic() - self._limit_s
        for task in self._open:
            if 0.0 < task.started <= latest_start and not task.future.done():
                task.future.set_exception(
                    ItemError("deadline_exceeded", "The image took too long to decode.")
                )
        self._watch = self._loop.call_later(self._limit_s / 4, self._check) if self._open else None
