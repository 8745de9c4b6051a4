"""The stage before the batcher: a request's pictures become pixels, each queued when it is ready.

Knows no protocol and no engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from amdim_clients.errors import ImageError
from amdim_clients.images import ImageLimits, Preprocess
from amdim_serving.errors import ItemError, RequestError
from amdim_serving.jobs import BatchRow, Job
from amdim_serving.metrics import Metrics
from amdim_serving.pictures import Decode, Picture, decode_picture
from amdim_serving.results import Timings
from amdim_serving.threads import ThreadPool
from amdim_serving.vectors import VectorBatch

Row = BatchRow[VectorBatch]


@dataclass(slots=True)
class Queued:
    """A decoded image on its way through the batcher."""

    row: asyncio.Future[Row]
    width: int
    height: int


class DecodeStage:
    """Decodes on a pool of threads.

    Args:
        pool: Its time limit is one picture's.
        decode: A picture's bytes to pixels.
        preprocess: The encoder's sizes.
        limits: Checked from a picture's header.
        metrics: Told how long each picture took.
    """

    def __init__(
        self,
        pool: ThreadPool,
        decode: Decode,
        *,
        preprocess: Preprocess,
        limits: ImageLimits,
        metrics: Metrics,
    ) -> None:
        self._pool = pool
        self._decode_image = decode
        self._preprocess = preprocess
        self._image_limits = limits
        self._metrics = metrics

    async def decode_all(
        self, job: Job[VectorBatch], pictures: Sequence[Picture], timings: Timings
    ) -> list[Queued | ItemError]:
        """Decodes a request's pictures and queues each as soon as it is decoded."""
        if len(pictures) == 1:
            return [await self._decode(job, pictures[0], 0, timings)]
        queued: list[Queued | ItemError | None] = [None] * len(pictures)
        left = iter(enumerate(pictures))

        async def work() -> None:
            for index, picture in left:
                queued[index] = await self._decode(job, picture, index, timings)

        # Few at a time, so that a request of a thousand does not fill the threads' queue.
        workers = min(len(pictures), 2 * self._pool.threads)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(work())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [item for item in queued if item is not None]

    async def _decode(
        self, job: Job[VectorBatch], picture: Picture, index: int, timings: Timings
    ) -> Queued | ItemError:
        started = time.monotonic()
        task = self._pool.submit(
            partial(
                decode_picture,
                self._decode_image,
                picture,
                self._preprocess,
                self._image_limits,
            )
        )
        try:
            decoded = await task.future
        except ImageError as error:
            return ItemError(error.code, error.message, index=index)
        except ItemError as error:
            return ItemError(error.code, error.message, index=index)
        except RequestError as error:
            raise RequestError(error.code, index=index) from None
        finally:
            if not task.returned:  # answered or given up, but a thread may still be at it
                task.when_returned(job.detach())
            del task  # its error's traceback holds this frame: a circle, with the picture in it
        spent_s = time.monotonic() - started
        timings.decode = max(timings.decode, spent_s)
        self._metrics.stage("decode", spent_s)
        return Queued(job.submit(decoded.pixels), decoded.width, decoded.height)
