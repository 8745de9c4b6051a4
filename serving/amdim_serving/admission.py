"""The bounds of a request and the account of how it ended, the same for every kind of work.

Knows no model, no queue and no protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from amdim_serving.errors import EngineError, RequestError
from amdim_serving.limits import Limits
from amdim_serving.metrics import Metrics
from amdim_serving.results import Timings
from amdim_serving.stats import ModelStats


class Admission:
    """Checks a request's count, sets its deadline, and counts its end once.

    Args:
        limits: Images of a request, and its seconds.
        metrics: Told what became of the images of a request that failed as a whole.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics

    @asynccontextmanager
    async def bounded(
        self, stats: ModelStats, images: int, timings: Timings
    ) -> AsyncIterator[float]:
        """Yields the deadline, in `time.monotonic()`, and cancels what is inside at it.

        Raises:
            RequestError: no_images, too_many_images, deadline_exceeded, what an engine's failure
                means, and what the work itself raises.
        """
        limit_s = self._limits.deadline_seconds
        async with self.counted(stats, images, timings):
            try:
                if not images:
                    raise RequestError("no_images")
                if images > self._limits.max_images:
                    raise RequestError("too_many_images")
                async with asyncio.timeout(limit_s):
                    yield time.monotonic() + limit_s
            except TimeoutError as error:
                raise self._failed(RequestError("deadline_exceeded"), images) from error
            except EngineError as error:
                failed = RequestError(error.code, status=error.status)
                raise self._failed(failed, images) from error
            except RequestError as error:
                raise self._failed(error, images) from error.__cause__

    def require_room(self, require: Callable[[int, float], None], *stats: ModelStats) -> None:
        """Refuses a request of one image that would be refused, before its body is read.

        Most of what a refusal costs is reading what it refuses.

        Args:
            require: Raises where so many images with so many seconds would find no room.
            stats: Of the models asked.

        Raises:
            RequestError: What `require` raises.
        """
        try:
            require(1, self._limits.deadline_seconds)
        except RequestError as error:
            for one in stats:
                one.failed(0.0)
            raise self._failed(error, 1) from error.__cause__

    @asynccontextmanager
    async def counted(
        self, stats: ModelStats, images: int, timings: Timings, *, as_batch: bool = False
    ) -> AsyncIterator[None]:
        """Counts a request in a model's statistics, as it ends.

        Args:
            stats: Of the model asked.
            images: Of the request.
            timings: Its slowest image's; read at the end.
            as_batch: Whether each request is an execution of that model.
        """
        started = time.monotonic()
        try:
            yield
        except RequestError:
            stats.failed(time.monotonic() - started)
            raise
        if as_batch:
            stats.batch(images, timings.infer)
        stats.succeeded(
            images,
            time.monotonic() - started,
            queue_s=timings.queue,
            input_s=timings.decode,
            infer_s=timings.infer,
        )

    def _failed(self, error: RequestError, images: int) -> RequestError:
        self._metrics.image(error.code, images)
        return error
