"""The one way from pictures to vectors: admit, decode, batch, check, normalise.

Every protocol calls `EmbedService`; it knows none of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from amdim_clients.contract import Certificate
from amdim_clients.errors import ImageError
from amdim_clients.images import ImageLimits, decode_image
from amdim_serving.batcher import Batcher
from amdim_serving.canaries import compare_canaries
from amdim_serving.engines import Engine
from amdim_serving.errors import EngineError, ItemError, RequestError
from amdim_serving.jobs import BatchRow, Job
from amdim_serving.limits import Limits
from amdim_serving.metrics import Metrics
from amdim_serving.pictures import Decode, Picture, decode_picture
from amdim_serving.stats import ModelStats
from amdim_serving.threads import ThreadPool
from amdim_serving.vectors import VectorBatch, encode_batch

Pixels = NDArray[np.uint8]
Row = BatchRow[VectorBatch]
ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class Timings:
    """Seconds of a request's slowest image in each stage."""

    decode: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    encode: float = 0.0


@dataclass(slots=True)
class Embedded:
    """One image's vectors by output, float32, and the upright size of its picture."""

    vectors: dict[str, NDArray[np.float32]]
    width: int
    height: int


@dataclass(slots=True)
class _Queued:
    """A decoded image on its way through the batcher."""

    row: asyncio.Future[Row]
    width: int
    height: int


@dataclass(slots=True)
class EmbedResult:
    """A request's images in its order, each embedded or failed alone."""

    items: list[Embedded | ItemError] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)


class EmbedService:
    """Serves one engine.

    Args:
        engine: Loaded and checked against its canaries; closed by `close`.
        limits: Enforced here: images, pixels, sides, decode seconds, queue, deadline.
        decode_threads: 0: as many as cores.
        metrics: Told what happens.
        decode: A picture's bytes to pixels, on a thread.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        limits: Limits | None = None,
        decode_threads: int = 0,
        metrics: Metrics | None = None,
        decode: Decode = decode_image,
    ) -> None:
        self.engine = engine
        self.spec = engine.spec
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self.stats = ModelStats()
        """Of everything that was encoded."""
        self.file_stats = ModelStats()
        """Of what came as encoded files."""
        self._image_limits = ImageLimits(
            max_pixels=self.limits.max_pixels, min_side=self.limits.min_side
        )
        self._decode_image = decode
        self._decoders = ThreadPool(threads=decode_threads, limit_s=self.limits.decode_seconds)
        self._engines = ThreadPool(threads=self.spec.instance_count, name="engine")
        self.batcher: Batcher[VectorBatch] = Batcher(
            self._run,
            max_batch_size=self.spec.max_batch_size,
            queue_images=self.limits.queue_images,
            max_queue_delay_s=self.spec.max_queue_delay_us / 1e6,
            instances=self.spec.instance_count,
            on_batch=self._count_batch,
        )

    async def start(self) -> None:
        """Starts the threads and the batcher on the running event loop."""
        self._decoders.start()
        self._engines.start()
        self.batcher.start()
        self.metrics.watch(
            lambda: self.batcher.stats.busy_s,
            lambda: self.batcher.admitted,
            self.spec.instance_count,
        )

    async def close(self, timeout_s: float = 30.0) -> None:
        """Finishes accepted work, then frees threads and engine."""
        await self.batcher.close(timeout_s)
        self._decoders.close()
        self.engine.close()
        self._engines.close()

    def check_outputs(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """Returns the outputs to compute: those named, in their order, else the default.

        Raises:
            RequestError: unknown_output.
        """
        if not names:
            return (self.spec.default_output,)
        for name in names:
            if name not in self.spec.outputs:
                raise RequestError("unknown_output")
        return tuple(dict.fromkeys(names))

    async def embed(
        self, pictures: Sequence[Picture], outputs: Sequence[str], *, normalize: bool = True
    ) -> EmbedResult:
        """Embeds pictures.

        Args:
            pictures: At most `limits.max_images`.
            outputs: As `check_outputs` returned them.
            normalize: Whether each vector is divided by its length.

        Raises:
            RequestError: The request as a whole failed: no_images, too_many_images, overloaded,
                bad_base64, draining, internal, deadline_exceeded.
        """
        result = EmbedResult()
        async with (
            self._counted(self.file_stats, len(pictures), result.timings),
            self._admitted(len(pictures), outputs, result.timings) as job,
        ):
            queued = await self._decode_all(job, pictures, result.timings)
            for decoded in queued:
                result.items.append(await self._finish(decoded, outputs, normalize, result.timings))
        self.metrics.image("ok", sum(isinstance(item, Embedded) for item in result.items))
        return result

    async def encode_pixels(
        self, images: Pixels, outputs: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """Encodes images that are already an encoder's pixels, as KServe v2 sends them.

        Args:
            images: (N, S, S, 3) uint8.
            outputs: As `check_outputs` returned them.

        Returns:
            Each output as (N, ...) float32, not normalised.

        Raises:
            RequestError: As `embed`; invalid_embedding for any image fails the request.
        """
        timings = Timings()
        async with self._admitted(len(images), outputs, timings) as job:
            futures = [job.submit(image) for image in images]
            rows = [await future for future in futures]
            timings.queue = max(row.queue_s for row in rows)
            timings.infer = max(row.infer_s for row in rows)
            if not all(row.batch.is_usable(row.row, outputs) for row in rows):
                raise RequestError("invalid_embedding")
        self.metrics.image("ok", len(images))
        return {
            name: np.stack([row.batch.take(row.row, name, normalize=False) for row in rows])
            for name in outputs
        }

    async def encode_files(
        self, files: Sequence[bytes | memoryview], outputs: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """Encodes picture files, as KServe v2 sends them to the model that takes bytes.

        Args:
            files: Each a whole file in an accepted format.
            outputs: As `check_outputs` returned them.

        Returns:
            Each output as (N, ...) float32, not normalised.

        Raises:
            RequestError: As `embed`; a bad image fails the request.
        """
        result = await self.embed([Picture(file) for file in files], outputs, normalize=False)
        embedded: list[Embedded] = []
        for index, item in enumerate(result.items):
            if isinstance(item, ItemError):
                raise RequestError(item.code, item.message, index=index)
            embedded.append(item)
        return {name: np.stack([item.vectors[name] for item in embedded]) for name in outputs}

    async def encode_canary(self, certificate: Certificate) -> None:
        """Runs one canary past the queue's bound, to see that the engine still answers right.

        Raises:
            ServingError: It does not.
        """
        outputs = tuple(certificate.expected)
        with self.batcher.admit(1, outputs, privileged=True) as job:
            row = await job.submit(certificate.pixels[0])
        got = {name: row.batch.vectors[name][row.row][None] for name in outputs}
        self.metrics.canary_cosine.set(compare_canaries(got, certificate))

    async def run_in_thread(self, call: Callable[[], ResultT]) -> ResultT:
        """Runs a call too long for the event loop, such as encoding a large answer."""
        return await self._decoders.submit(call).future

    async def _run(self, images: Sequence[Pixels], outputs: Sequence[str]) -> VectorBatch:
        return await self._engines.submit(
            partial(encode_batch, self.engine, images, outputs)
        ).future

    async def _decode_all(
        self, job: Job[VectorBatch], pictures: Sequence[Picture], timings: Timings
    ) -> list[_Queued | ItemError]:
        """Decodes a request's pictures and queues each as soon as it is decoded."""
        if len(pictures) == 1:
            return [await self._decode(job, pictures[0], 0, timings)]
        queued: list[_Queued | ItemError | None] = [None] * len(pictures)
        left = iter(enumerate(pictures))

        async def work() -> None:
            for index, picture in left:
                queued[index] = await self._decode(job, picture, index, timings)

        # Few at a time, so that a request of a thousand does not fill the threads' queue.
        workers = min(len(pictures), 2 * self._decoders.threads)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(work())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [item for item in queued if item is not None]

    async def _decode(
        self, job: Job[VectorBatch], picture: Picture, index: int, timings: Timings
    ) -> _Queued | ItemError:
        started = time.monotonic()
        task = self._decoders.submit(
            partial(
                decode_picture,
                self._decode_image,
                picture,
                self.spec.preprocess,
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
        spent_s = time.monotonic() - started
        timings.decode = max(timings.decode, spent_s)
        self.metrics.stage("decode", spent_s)
        return _Queued(job.submit(decoded.pixels), decoded.width, decoded.height)

    async def _finish(
        self,
        queued: _Queued | ItemError,
        outputs: Sequence[str],
        normalize: bool,
        timings: Timings,
    ) -> Embedded | ItemError:
        """Waits for one image's row and checks and normalises its vectors."""
        if isinstance(queued, ItemError):
            self.metrics.image(queued.code)
            return queued
        row = await queued.row
        timings.queue = max(timings.queue, row.queue_s)
        timings.infer = max(timings.infer, row.infer_s)
        self.metrics.stage("queue", row.queue_s)
        self.metrics.stage("infer", row.infer_s)
        if not row.batch.is_usable(row.row, outputs):
            self.metrics.image("invalid_embedding")
            return ItemError("invalid_embedding")
        vectors = {name: row.batch.take(row.row, name, normalize=normalize) for name in outputs}
        return Embedded(vectors, queued.width, queued.height)

    @asynccontextmanager
    async def _admitted(
        self, images: int, outputs: Sequence[str], timings: Timings
    ) -> AsyncIterator[Job[VectorBatch]]:
        """Takes permits and sets the deadline; every way out is counted once.

        Raises:
            RequestError: no_images, too_many_images, overloaded, draining, deadline_exceeded,
                internal, and what the work itself raises.
        """
        limit_s = self.limits.deadline_seconds
        async with self._counted(self.stats, images, timings):
            try:
                if not images:
                    raise RequestError("no_images")
                if images > self.limits.max_images:
                    raise RequestError("too_many_images")
                deadline = time.monotonic() + limit_s
                with self.batcher.admit(images, outputs, deadline=deadline) as job:
                    async with asyncio.timeout(limit_s):
                        yield job
            except TimeoutError as error:
                raise self._failed(RequestError("deadline_exceeded"), images) from error
            except EngineError as error:
                raise self._failed(RequestError("internal"), images) from error
            except RequestError as error:
                raise self._failed(error, images) from error.__cause__

    @asynccontextmanager
    async def _counted(
        self, stats: ModelStats, images: int, timings: Timings
    ) -> AsyncIterator[None]:
        """Counts a request in a model's statistics, as it ends."""
        started = time.monotonic()
        try:
            yield
        except RequestError:
            stats.failed(time.monotonic() - started)
            raise
        if stats is self.file_stats:
            stats.batch(images, timings.infer)
        stats.succeeded(
            images,
            time.monotonic() - started,
            queue_s=timings.queue,
            input_s=timings.decode,
            infer_s=timings.infer,
        )

    def _failed(self, error: RequestError, images: int) -> RequestError:
        self.metrics.image(error.code, images)
        return error

    def _count_batch(self, images: int, seconds: float) -> None:
        self.metrics.batch(images)
        self.stats.batch(images, seconds)
