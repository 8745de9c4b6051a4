"""The one way from pictures to vectors: admit, decode, batch, check, normalise.

Every protocol calls `EmbedService`; it knows none of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from amdim_clients.contract import WINDOWS, Certificate
from amdim_clients.images import ImageLimits, decode_image
from amdim_clients.windows import DEFAULT_SCALES
from amdim_serving.admission import Admission
from amdim_serving.batcher import Batcher
from amdim_serving.canaries import compare_canaries
from amdim_serving.decoding import DecodeStage, Queued
from amdim_serving.engines import Engine
from amdim_serving.errors import ItemError, RequestError
from amdim_serving.health import Health
from amdim_serving.jobs import Job
from amdim_serving.limits import Limits
from amdim_serving.metrics import Metrics
from amdim_serving.opening import WindowsModel
from amdim_serving.pictures import Decode, Picture
from amdim_serving.results import Embedded, EmbedResult, Timings
from amdim_serving.stats import ModelStats
from amdim_serving.threads import ThreadPool
from amdim_serving.vectors import VectorBatch, encode_batch
from amdim_serving.windows import WindowsService

Pixels = NDArray[np.uint8]
ResultT = TypeVar("ResultT")


class EmbedService:
    """Serves one engine.

    Args:
        engine: Loaded and checked against its canaries; closed by `close`.
        beside: The same with one thread a call, for the cores that decode too. With it, decodes
            and batches take turns on as many threads as there are cores, and `engine` gets what
            comes alone. Closed by `close`.
        windows: Gives the vectors of a picture's windows; None: there are none. Closed by `close`.
        limits: Enforced here: images, pixels, sides, decode seconds, queue, deadline.
        decode_threads: 0: as many as cores.
        metrics: Told what happens.
        decode: A picture's bytes to pixels, on a thread.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        beside: Engine | None = None,
        windows: WindowsModel | None = None,
        limits: Limits | None = None,
        decode_threads: int = 0,
        metrics: Metrics | None = None,
        decode: Decode = decode_image,
    ) -> None:
        self.engine = engine
        self._beside = beside
        self.spec = engine.spec
        self.health: Health | None = None
        """Set by who watches this model; while it fails, requests are refused."""
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self._admission = Admission(self.limits, self.metrics)
        self.stats = ModelStats()
        """Of everything that was encoded."""
        self.file_stats = ModelStats()
        """Of what came as encoded files."""
        self._decoders = ThreadPool(threads=decode_threads, limit_s=self.limits.decode_seconds)
        self._decoding = DecodeStage(
            self._decoders,
            decode,
            preprocess=self.spec.preprocess,
            limits=ImageLimits(max_pixels=self.limits.max_pixels, min_side=self.limits.min_side),
            metrics=self.metrics,
        )
        instances = engine.info.calls if beside is None else beside.info.calls
        self._engines = self._decoders
        if beside is None:
            self._engines = ThreadPool(threads=instances, name="engine")
        self._unwatch: Callable[[], None] = lambda: None  # until it has started
        self.batcher: Batcher[VectorBatch] = Batcher(
            self._run,
            max_batch_size=self.spec.max_batch_size,
            queue_images=self.limits.queue_images,
            max_queue_delay_s=self.spec.max_queue_delay_us / 1e6,
            instances=instances,
            free=None if beside is None else self._free_cores,
            on_batch=self._count_batch,
        )
        self.windows: WindowsService | None = None
        if windows is not None:
            self.windows = WindowsService(
                windows,
                limits=self.limits,
                decoders=self._decoders,
                engines=self._engines,
                admission=self._admission,
                metrics=self.metrics,
            )
        self._instances = instances
        if beside is not None:
            self._decoders.on_free = self.batcher.poke

    async def start(self) -> None:
        """Starts the threads and the batcher on the running event loop."""
        self._decoders.start()
        if self._engines is not self._decoders:
            self._engines.start()
        self.batcher.start()
        if self.windows is not None:
            self.windows.start()
        self._unwatch = self.metrics.watch(
            lambda: self.batcher.stats.busy_s,
            lambda: self.batcher.admitted,
            self._instances,
        )

    async def close(self, timeout_s: float = 30.0) -> None:
        """Finishes accepted work, then frees threads and engine."""
        closing = [self.batcher.close(timeout_s)]
        if self.windows is not None:
            closing.append(self.windows.close(timeout_s))
        await asyncio.gather(*closing)
        self._unwatch()
        self._decoders.close()
        self.engine.close()
        if self.windows is not None:
            self.windows.free()
        if self._beside is not None and self._beside is not self.engine:
            self._beside.close()
        if self._engines is not self._decoders:
            self._engines.close()

    def check_outputs(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """Returns the outputs to compute: those named, in their order, else the default.

        Raises:
            RequestError: unknown_output.
        """
        if not names:
            return (self.spec.default_output,)
        for name in names:
            if name == WINDOWS and self.windows is None:
                raise RequestError("unknown_output", "No model of windows is served here.")
            if name not in self.spec.outputs and name != WINDOWS:
                raise RequestError("unknown_output")
        return tuple(dict.fromkeys(names))

    def require_room(self) -> None:
        """Refuses a request of one picture that would find no room, before its body is read.

        Raises:
            RequestError: overloaded; counted as `embed` counts it.
        """
        self._admission.require_room(self.batcher.require_room, self.stats, self.file_stats)

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
            self._admission.counted(self.file_stats, len(pictures), result.timings, as_batch=True),
            self._admitted(len(pictures), outputs, result.timings) as job,
        ):
            queued = await self._decoding.decode_all(job, pictures, result.timings)
            for decoded in queued:
                result.items.append(await self._finish(decoded, outputs, normalize, result.timings))
        self.metrics.image("ok", sum(isinstance(item, Embedded) for item in result.items))
        return result

    async def embed_windows(
        self,
        pictures: Sequence[Picture],
        outputs: Sequence[str],
        *,
        scales: Sequence[float] | None = None,
        normalize: bool = True,
    ) -> EmbedResult:
        """Embeds pictures, with the vectors of all their windows among the outputs.

        Args:
            pictures: At most `limits.max_images`.
            outputs: As `check_outputs` returned them; others than `windows` need not be there.
            scales: Good ones; the default ones when not given.
            normalize: Whether each vector is divided by its length.

        Raises:
            RequestError: As `embed`; too_many_windows where all pictures together have them.
        """
        assert self.windows is not None, "check_outputs comes first"
        result = await self.windows.embed(pictures, scales or DEFAULT_SCALES, normalize=normalize)
        others = tuple(name for name in outputs if name != WINDOWS)
        if not others:
            for item in result.items:
                self.metrics.image(item.code if isinstance(item, ItemError) else "ok")
            return result
        whole = await self.embed(pictures, others, normalize=normalize)
        for index, item in enumerate(result.items):
            other = whole.items[index]
            if isinstance(item, ItemError) and not isinstance(other, ItemError):
                whole.items[index] = item
            elif isinstance(item, Embedded) and isinstance(other, Embedded):
                other.windows = item.windows
        whole.timings.merge(result.timings)
        return whole

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

    async def encode_canary(self, certificate: Certificate) -> float:
        """Runs one canary past the queue's bound and returns its worst cosine.

        Raises:
            ServingError: The engine does not reproduce it.
        """
        outputs = tuple(certificate.expected)
        with self.batcher.admit(1, outputs, privileged=True) as job:
            row = await job.submit(certificate.pixels[0])
        got = {name: row.batch.vectors[name][row.row][None] for name in outputs}
        return compare_canaries(got, certificate)

    async def run_in_thread(self, call: Callable[[], ResultT]) -> ResultT:
        """Runs a call too long for the event loop, such as encoding a large answer."""
        return await self._decoders.submit(call).future

    def _run(self, images: Sequence[Pixels], outputs: Sequence[str]) -> asyncio.Future[VectorBatch]:
        engine = self.engine
        # Every core for what comes alone: its answer is sooner there.
        if self._beside is not None and not (self._engines.is_idle and not self.batcher.waiting):
            engine = self._beside
        call = partial(encode_batch, engine, images, outputs)
        return self._engines.submit(call, urgent=True).future

    def _free_cores(self) -> int:
        return self._decoders.free

    async def _finish(
        self,
        queued: Queued | ItemError,
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
                internal, engine_unavailable, and what the work itself raises.
        """
        async with self._admission.bounded(self.stats, images, timings) as deadline:
            if self.health is not None and not self.health.is_good:
                await self.health.require()
            with self.batcher.admit(images, outputs, deadline=deadline) as job:
                yield job

    def _count_batch(self, images: int, seconds: float) -> None:
        self.metrics.batch(images)
        self.stats.batch(images, seconds)
