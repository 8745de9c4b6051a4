"""What waits in the batcher: one request's images, and each one's answer to come.

Knows no HTTP, no model and no scheduling; `batcher.py` decides what runs when.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from amdim_serving.errors import RequestError

Pixels = NDArray[np.uint8]
BatchT = TypeVar("BatchT")


@dataclass(frozen=True, slots=True)
class BatchRow(Generic[BatchT]):
    """One image's share of a batch that ran."""

    batch: BatchT
    row: int
    queue_s: float
    infer_s: float


@dataclass(slots=True, eq=False)
class Waiting(Generic[BatchT]):
    """One image that waits for its batch."""

    pixels: Pixels
    future: asyncio.Future[BatchRow[BatchT]]
    permits: int = 1
    since: float = field(default_factory=time.monotonic)

    def settle(self, error: Exception | None = None) -> None:
        """Ends the wait without a result: with `error`, else as cancelled."""
        if self.future.done():
            return
        if error is None:
            self.future.cancel()
        else:
            self.future.set_exception(error)
            self.future.exception()  # marks it as seen: its caller may have left


class Queue(Protocol[BatchT]):
    """What a job needs of the batcher that admitted it."""

    def enqueue(
        self, job: Job[BatchT], pixels: Pixels, permits: int
    ) -> asyncio.Future[BatchRow[BatchT]]:
        """Queues one image of a job, which uses so many of its permits."""

    def drop(self, job: Job[BatchT], error: RequestError | None = None) -> None:
        """Takes a job's waiting images out."""

    def release(self, images: int = 1) -> None:
        """Gives permits back."""

    def leave(self) -> None:
        """A job has ended."""


class Job(Generic[BatchT]):
    """One request's images: a number of permits, used up by `submit`.

    A context manager; leaving it drops what still waits and gives unused permits back.
    """

    def __init__(
        self, queue: Queue[BatchT], images: int, outputs: Sequence[str], deadline: float
    ) -> None:
        self._queue = queue
        self._unused = images
        self.outputs = tuple(outputs)
        self.deadline = deadline
        self.waiting: deque[Waiting[BatchT]] = deque()

    def submit(self, pixels: Pixels, permits: int = 1) -> asyncio.Future[BatchRow[BatchT]]:
        """Queues one image and returns the future of its row.

        Args:
            pixels: (S, S, 3) uint8, or larger where the engine takes that.
            permits: How many single images it costs as much as.

        The future fails with `EngineError` when its batch does, and with `RequestError`
        (deadline_exceeded, draining) when it is dropped unrun.
        """
        if self._unused < permits:
            raise ValueError("every permit of this job is used")
        self._unused -= permits
        return self._queue.enqueue(self, pixels, permits)

    def detach(self, permits: int = 1) -> Callable[[], None]:
        """Takes unused permits out of the job and returns the call that gives them back.

        For work that outlives its request, such as a decode that runs too long.
        """
        self._unused -= permits
        return partial(self._queue.release, permits)

    def close(self) -> None:
        """Drops what waits and gives every unused permit back."""
        unused, self._unused = self._unused, 0
        self._queue.drop(self)
        self._queue.release(unused)
        self._queue.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
