"""Threads that run calls off the event loop, as many as there are cores.

Knows no image format and no HTTP. One hop to a thread and one back; nothing else per call. Calls
that keep a core busy all go through one pool, so that there are never more of them than cores.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from amdim_serving.errors import ItemError

ResultT = TypeVar("ResultT")

# A call with a limit that takes longer than this no longer counts as one that holds a core: another
# thread takes its place, so that a few huge pictures do not stop everything else.
_PATIENCE_S = 0.05
# So many threads a core, at most, however many calls are slow.
_THREADS_A_CORE = 3


class Task(Generic[ResultT]):
    """One call in the pool.

    Attributes:
        future: The answer; fails with `ItemError` (deadline_exceeded) when the call runs too long.
        returned: Whether the call has ended or never will start; it may outlive its answer.
    """

    def __init__(
        self, call: Callable[[], ResultT], loop: asyncio.AbstractEventLoop, *, limited: bool
    ) -> None:
        self.call = call
        self.future: asyncio.Future[ResultT] = loop.create_future()
        self.started = 0.0
        self.returned = False
        self.limited = limited
        self.lags = False
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
    """Threads that take calls in order, those submitted as `urgent` first.

    Args:
        threads: How many calls run at once; 0: as many as this process may use cores.
        limit_s: Seconds from a call's start after which its caller gets an error; None: no limit.
            Urgent calls have none.
        name: Of the threads.
    """

    def __init__(
        self, *, threads: int = 0, limit_s: float | None = None, name: str = "decode"
    ) -> None:
        self._name = name
        self.threads = threads or len(os.sched_getaffinity(0))
        self.on_free: Callable[[], None] | None = None
        """Called on the event loop after a call has ended and a thread has nothing to do."""
        self._limit_s = limit_s
        self._urgent: deque[Task[object]] = deque()
        self._others: deque[Task[object]] = deque()
        # One True for each task in the deques; False ends a thread.
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._open: set[Task[object]] = set()
        self._lagging = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._running = 0

    @property
    def free(self) -> int:
        """How many more calls would start at once."""
        return max(0, self.threads + self._lagging - len(self._open))

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._open

    def start(self) -> None:
        """Starts the threads; needs the running event loop."""
        self._loop = asyncio.get_running_loop()
        for _ in range(self.threads):
            self._add_thread()

    def submit(self, call: Callable[[], ResultT], *, urgent: bool = False) -> Task[ResultT]:
        """Queues a call; a task whose future is cancelled before its turn is not run."""
        assert self._loop is not None, "start() comes first"
        task = Task(call, self._loop, limited=self._limit_s is not None and not urgent)
        self._open.add(task)  # type: ignore[arg-type]  # the set holds tasks of every result
        (self._urgent if urgent else self._others).append(task)  # type: ignore[arg-type]
        self._tokens.put(True)
        if self._watch is None and task.limited:
            self._start_watch()
        return task

    def close(self) -> None:
        """Lets the threads end after what they are doing; a stuck one is left to the process."""
        for _ in range(self._running):
            self._tokens.put(False)
        self._running = 0
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _add_thread(self) -> None:
        name = f"{self._name}-{self._running}"
        self._running += 1
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        assert self._loop is not None
        while self._tokens.get():
            task = self._next()
            result: object = None
            error: BaseException | None = None
            if not task.future.cancelled():
                task.started = time.monotonic()
                try:
                    result = task.call()
                except BaseException as raised:  # whatever it is, its caller must be told
                    error = raised
            try:
                self._loop.call_soon_threadsafe(self._finish, task, result, error)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                return
            del task, result, error  # not kept while the thread waits for the next

    def _next(self) -> Task[object]:
        """Returns the next task; a token was taken, so there is one."""
        while True:
            for tasks in (self._urgent, self._others):
                try:
                    return tasks.popleft()
                except IndexError:  # another thread, with a token of its own, was first
                    continue

    def _finish(self, task: Task[object], result: object, error: BaseException | None) -> None:
        self._open.discard(task)
        if task.lags:
            self._lagging -= 1
            if self._running > self.threads + self._lagging:
                self._running -= 1
                self._tokens.put(False)
        task.finish(result, error)
        if self.on_free is not None and len(self._open) < self.threads + self._lagging:
            self.on_free()

    def _start_watch(self) -> None:
        assert self._loop is not None and self._limit_s is not None
        self._watch = self._loop.call_later(min(_PATIENCE_S, self._limit_s / 4), self._check)

    def _check(self) -> None:
        """Answers for the calls that have run too long; they go on until they return."""
        assert self._limit_s is not None
        now = time.monotonic()
        self._watch = None
        is_limited = False
        for task in self._open:
            is_limited |= task.limited
            if not (task.limited and task.started):
                continue
            spent_s = now - task.started
            if spent_s > _PATIENCE_S and not task.lags:
                self._let_another_in(task)
            if spent_s > self._limit_s and not task.future.done():
                task.future.set_exception(
                    ItemError("deadline_exceeded", "The image took too long to decode.")
                )
        if is_limited:
            self._start_watch()

    def _let_another_in(self, task: Task[object]) -> None:
        if self.threads + self._lagging < self.threads * _THREADS_A_CORE:
            task.lags = True
            self._lagging += 1
            if self._running < self.threads + self._lagging:
                self._add_thread()
            if self.on_free is not None and self.free:
                self.on_free()
