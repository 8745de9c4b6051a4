"""Pictures of any size to the vectors of all their windows, beside the service of single vectors.

A big picture is a bigger job: it counts by its pixels in queue, batch and permits, one permit for
each S x S of them. Knows no protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from amdim_clients.contract import WINDOWS
from amdim_clients.errors import ImageError
from amdim_clients.images import ImageLimits, Preprocess, header_size
from amdim_clients.windows import WindowGrid, decode_windows, plan_grids
from amdim_serving.admission import Admission
from amdim_serving.batcher import Batcher
from amdim_serving.canaries import compare_canaries
from amdim_serving.engines import Engine
from amdim_serving.errors import ItemError, RequestError
from amdim_serving.health import Health
from amdim_serving.jobs import BatchRow, Job
from amdim_serving.limits import Limits
from amdim_serving.metrics import Metrics
from amdim_serving.opening import WindowsModel
from amdim_serving.pictures import Picture, picture_bytes
from amdim_serving.results import Embedded, EmbedResult, Timings, WindowVectors
from amdim_serving.stats import ModelStats
from amdim_serving.threads import ThreadPool

Vectors = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Batch = list[Vectors]
# A batch computes as much as so many single images, at most, unless one picture alone is larger.
_BATCH_PERMITS = 16
_TOO_MANY_TOGETHER = "The images have more windows together than are taken at once; send fewer."


@dataclass(frozen=True, slots=True)
class _Planned:
    """A picture whose header was read: its bytes, and what its windows will cost."""

    data: bytes | memoryview
    permits: int


class WindowsService:
    """Serves one windows model.

    Args:
        model: Its engine is closed by `close`.
        limits: Pixels, sides, windows, queue.
        decoders: Threads for headers and pictures; started by who owns them.
        engines: Threads for batches; the same ones, or others.
        admission: Bounds requests and counts their ends.
        metrics: Told what happens.
    """

    def __init__(
        self,
        model: WindowsModel,
        *,
        limits: Limits,
        decoders: ThreadPool,
        engines: ThreadPool,
        admission: Admission,
        metrics: Metrics,
    ) -> None:
        self.model = model
        self.spec = model.engine.spec
        self.stats = ModelStats()
        self._limits = limits
        self._image_limits = ImageLimits(limits.max_pixels, limits.min_side)
        self._decoders = decoders
        self._engines = engines
        self._admission = admission
        self._metrics = metrics
        self._unwatch: Callable[[], None] = lambda: None  # until it has started
        self.batcher: Batcher[Batch] = Batcher(
            self._run,
            max_batch_size=_BATCH_PERMITS,
            queue_images=limits.queue_images,
            instances=model.engine.info.calls,
            on_batch=self._count_batch,
        )
        self.health = Health(
            self.spec.name,
            self.batcher.stats,
            is_proved=lambda: self.model.engine.is_proved,
            run_canary=self.encode_canary,
            metrics=metrics,
        )

    def start(self) -> None:
        """Starts the batcher on the running event loop."""
        self.batcher.start()
        # It computes where single images are computed too, so it adds no engine to be busy.
        self._unwatch = self._metrics.watch(
            lambda: self.batcher.stats.busy_s, lambda: self.batcher.admitted, 0
        )

    async def close(self, timeout_s: float) -> None:
        """Finishes accepted work; `free` may follow once no thread is at it."""
        await self.batcher.close(timeout_s)
        self._unwatch()

    def free(self) -> None:
        """Frees the engine."""
        self.model.engine.close()

    async def embed(
        self,
        pictures: Sequence[Picture],
        scales: Sequence[float],
        *,
        normalize: bool,
    ) -> EmbedResult:
        """Returns each picture's windows at each scale, or why it has none.

        Raises:
            RequestError: As `EmbedService.embed`; engine_unavailable where the model failed on
                its canary; too_many_windows where all pictures together have more than the queue
                holds.
        """
        result = EmbedResult()
        async with self._admission.bounded(self.stats, len(pictures), result.timings) as deadline:
            await self.health.require()
            result.items = await self._embed_all(
                pictures, scales, normalize, deadline, result.timings
            )
        return result

    async def _embed_all(
        self,
        pictures: Sequence[Picture],
        scales: Sequence[float],
        normalize: bool,
        deadline: float,
        timings: Timings,
    ) -> list[Embedded | ItemError]:
        plans = await self._decoders.submit(partial(self._plan_all, pictures, scales)).future
        permits = sum(plan.permits for plan in plans if isinstance(plan, _Planned))
        if permits > self._limits.queue_images:
            raise RequestError("too_many_windows", _TOO_MANY_TOGETHER)
        with self.batcher.admit(permits, (WINDOWS,), deadline=deadline) as job:
            left = iter(list(enumerate(plans)))
            found: list[Embedded | ItemError | None] = [None] * len(plans)

            async def work() -> None:
                for index, plan in left:
                    if isinstance(plan, ItemError):
                        found[index] = plan
                    else:
                        found[index] = await self._embed_one(
                            job, plan, index, scales, normalize, timings
                        )

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(len(plans), 2 * self._decoders.threads)):
                        group.create_task(work())
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None
        return [item for item in found if item is not None]

    async def encode_pixels(self, images: Pixels, outputs: Sequence[str]) -> dict[str, Vectors]:
        """Encodes pictures of one size that are pixels already, as KServe v2 sends them.

        Args:
            images: (N, H, W, 3) uint8.
            outputs: `windows` alone.

        Returns:
            It as (N, h, w, E) float32, not normalised.

        Raises:
            RequestError: As `embed`, and invalid_embedding.
        """
        timings = Timings()
        async with self._admission.bounded(self.stats, len(images), timings) as deadline:
            await self.health.require()
            vectors = await self._encode_pixels(images, deadline, timings)
        self._metrics.image("ok", len(images))
        return dict.fromkeys(outputs, vectors)

    async def encode_canary(self) -> float:
        """Runs one canary past the queue's bound and returns its worst cosine.

        Raises:
            ServingError: The engine does not reproduce it.
        """
        certificate = self.model.certificate
        pixels: Pixels = certificate.pixels[0]
        permits = self._permits(*pixels.shape[:2])
        with self.batcher.admit(permits, (WINDOWS,), privileged=True) as job:
            row = await job.submit(pixels, permits=permits)
        return compare_canaries({WINDOWS: row.batch[row.row][None]}, certificate)

    async def _encode_pixels(self, images: Pixels, deadline: float, timings: Timings) -> Vectors:
        each = self._permits(images.shape[1], images.shape[2])
        if each * len(images) > self._limits.queue_images:
            raise RequestError("too_many_windows", _TOO_MANY_TOGETHER)
        with self.batcher.admit(each * len(images), (WINDOWS,), deadline=deadline) as job:
            rows = [await row for row in [job.submit(image, permits=each) for image in images]]
        timings.queue = max(row.queue_s for row in rows)
        timings.infer = max(row.infer_s for row in rows)
        vectors = np.stack([row.batch[row.row] for row in rows])
        if not np.isfinite(vectors).all() or not np.any(vectors, axis=-1).all():
            raise RequestError("invalid_embedding")
        return vectors

    def _permits(self, height: int, width: int) -> int:
        return -(-height * width // self.spec.image_size**2)

    def _plan_all(
        self, pictures: Sequence[Picture], scales: Sequence[float]
    ) -> list[_Planned | ItemError]:
        return [self._plan(picture, scales, index) for index, picture in enumerate(pictures)]

    def _plan(self, picture: Picture, scales: Sequence[float], index: int) -> _Planned | ItemError:
        """Reads a picture's header; nothing is decoded before its permits are there."""
        try:
            data = picture_bytes(picture)
            width, height = header_size(data, self._image_limits)
            grids = plan_grids(
                width,
                height,
                scales,
                self.spec.image_size,
                max_windows=self._limits.max_windows,
            )
        except ImageError as error:
            return ItemError(error.code, error.message, index=index)
        except RequestError as error:
            raise RequestError(error.code, index=index) from None
        return _Planned(data, sum(self._permits(grid.height, grid.width) for grid in grids))

    async def _embed_one(
        self,
        job: Job[Batch],
        plan: _Planned,
        index: int,
        scales: Sequence[float],
        normalize: bool,
        timings: Timings,
    ) -> Embedded | ItemError:
        started = time.monotonic()
        task = self._decoders.submit(
            partial(
                _decode,
                plan.data,
                self.spec.preprocess,
                scales,
                self._image_limits,
                self._limits.max_windows,
            )
        )
        try:
            grids, (width, height) = await task.future
        except ImageError as error:
            return ItemError(error.code, error.message, index=index)
        except ItemError as error:
            return ItemError(error.code, error.message, index=index)
        finally:
            if not task.returned:  # answered or given up, but a thread may still be at it
                task.when_returned(job.detach(plan.permits))
        timings.decode = max(timings.decode, time.monotonic() - started)
        futures = [
            job.submit(pixels, permits=self._permits(*pixels.shape[:2])) for _, pixels in grids
        ]
        windows = []
        for (grid, _), future in zip(grids, futures, strict=True):
            vectors = self._finish(await future, normalize, timings)
            if vectors is None:
                return ItemError("invalid_embedding", index=index)
            windows.append(WindowVectors(grid, vectors))
        return Embedded({}, width, height, tuple(windows))

    def _finish(self, row: BatchRow[Batch], normalize: bool, timings: Timings) -> Vectors | None:
        """Returns one picture's windows, (h, w, E), or None where one of them is no vector."""
        timings.queue = max(timings.queue, row.queue_s)
        timings.infer = max(timings.infer, row.infer_s)
        vectors = row.batch[row.row]
        lengths = np.sqrt(np.einsum("hwe,hwe->hw", vectors, vectors))
        if not np.isfinite(lengths).all() or not lengths.all():
            return None
        return vectors / lengths[..., None] if normalize else vectors

    def _run(self, images: Sequence[Pixels], outputs: Sequence[str]) -> asyncio.Future[Batch]:
        call: Callable[[], Batch] = partial(encode_windows, self.model.engine, images)
        return self._engines.submit(call, urgent=True).future

    def _count_batch(self, images: int, seconds: float) -> None:
        self.stats.batch(images, seconds)


def encode_windows(engine: Engine, images: Sequence[Pixels]) -> Batch:
    """Encodes pictures of any sizes, those of one size together.

    Returns:
        For each picture (h, w, E) float32, in their order.

    Raises:
        EngineError: The engine failed.
    """
    vectors: list[Vectors | None] = [None] * len(images)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(index)
    size = engine.spec.max_batch_size
    for indices in by_shape.values():
        for at in range(0, len(indices), size):
            chosen = indices[at : at + size]
            rows = engine.encode(np.stack([images[index] for index in chosen]), (WINDOWS,))[WINDOWS]
            for index, row in zip(chosen, rows, strict=True):
                vectors[index] = row
    return [row for row in vectors if row is not None]


def _decode(
    data: bytes | memoryview,
    preprocess: Preprocess,
    scales: Sequence[float],
    limits: ImageLimits,
    max_windows: int,
) -> tuple[list[tuple[WindowGrid, Pixels]], tuple[int, int]]:
    """Returns a picture's pixels at each scale, and its own width and height by its header."""
    grids = decode_windows(data, preprocess, scales, limits=limits, max_windows=max_windows)
    return grids, header_size(data, limits)
