"""The Prometheus metrics of one gateway, in a registry of its own.

Knows what is counted, not when: whoever does the work reports it here. Label sets are bounded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    multiprocess,
    values,
)

from amdim_serving.engines import Engine

# The library keeps values in files that several processes share where its variable names a folder.
_IS_SHARED = values.ValueClass is not values.MutexValue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From a cached answer to the default deadline.
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128)
STAGES = ("decode", "queue", "infer", "encode")


class Metrics:
    """Counters, gauges and histograms by the names of the wire contract."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "amdim_requests", "Requests answered.", ["route", "code"], registry=self.registry
        )
        self._images = Counter(
            "amdim_images", "Images by what became of them.", ["outcome"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "amdim_request_seconds",
            "Seconds from a request's head to its answer's end.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        stage = Histogram(
            "amdim_stage_seconds",
            "Seconds an image (encode: an answer) spends in a stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stages = {name: stage.labels(name) for name in STAGES}
        self._batch_size = Histogram(
            "amdim_batch_size", "Images in a batch.", buckets=_BATCH, registry=self.registry
        )
        self.queue_images = Gauge(
            "amdim_queue_images",
            "Images admitted and unanswered.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.queue_limit = Gauge(
            "amdim_queue_limit_images",
            "Images admitted at most.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.ready = Gauge(
            "amdim_ready",
            "Whether the last readiness check passed.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self._model_ready = Gauge(
            "amdim_model_ready",
            "Whether a model's last check passed.",
            ["model"],
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self._canary_cosine = Gauge(
            "amdim_canary_cosine",
            "Worst cosine of any model's last canary run.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self._busy_ratio = Gauge(
            "amdim_engine_busy_ratio",
            "Share of the time since the last scrape that the engine was computing.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._build_info = Gauge(
            "amdim_build_info",
            "What serves; always 1.",
            ["version", "model", "model_version", "engine", "provider", "precision"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        ProcessCollector(registry=self.registry)
        self.reloads = Counter(
            "amdim_reloads", "Reloads by what came of them.", ["outcome"], registry=self.registry
        )
        self._said: tuple[str, ...] = ()
        self._cosines: dict[str, float] = {}
        self._watched: dict[object, tuple[Callable[[], float], Callable[[], int], int]] = {}
        self._seen: tuple[float, float] = (time.monotonic(), 0.0)
        if not _IS_SHARED:
            self._busy_ratio.set_function(self._read_busy_ratio)
            self.queue_images.set_function(self._read_queue)
        for outcome in ("replaced", "unchanged", "failed"):
            self.reloads.labels(outcome)
        self._bound: dict[tuple[str, int], Counter] = {}
        self._outcomes: dict[str, Counter] = {}

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered request; `route` is a path template, never a client's own path."""
        counter = self._bound.get((route, status))
        if counter is None:
            counter = self._bound[route, status] = self._requests.labels(route, str(status))
        counter.inc()
        self._request_seconds.observe(seconds)

    def image(self, outcome: str, images: int = 1) -> None:
        """Counts images that ended as `ok` or as an error code."""
        counter = self._outcomes.get(outcome)
        if counter is None:
            counter = self._outcomes[outcome] = self._images.labels(outcome)
        counter.inc(images)

    def stage(self, name: str, seconds: float) -> None:
        """Records the time spent in one of `STAGES`."""
        self._stages[name].observe(seconds)

    def batch(self, images: int) -> None:
        """Records a batch."""
        self._batch_size.observe(images)

    def serve_models(self, cosines: Mapping[str, float]) -> None:
        """States which models serve, each with its worst canary at load, and no others any more."""
        for model in self._cosines.keys() - cosines.keys():
            self.verdict(model, False)  # shared files forget nothing
        self._cosines = {}
        for model, cosine in cosines.items():
            self.verdict(model, True)
            self.canary(model, cosine)

    def verdict(self, model: str, is_good: bool) -> None:
        """Records whether a model passed its check."""
        self._model_ready.labels(model).set(is_good)

    def canary(self, model: str, cosine: float) -> None:
        """Records how near a model's canary came."""
        self._cosines[model] = cosine
        self._canary_cosine.set(min(self._cosines.values()))

    def watch(
        self, busy_s: Callable[[], float], queued: Callable[[], int], instances: int
    ) -> Callable[[], None]:
        """Reads the busy ratio and the queue from a batcher whenever they are scraped.

        Returns:
            Ends that, when the batcher is closed.
        """
        watched = object()
        self._watched[watched] = busy_s, queued, instances

        def end() -> None:
            self._watched.pop(watched, None)
            self._seen = time.monotonic(), self._busy_s()

        self._seen = time.monotonic(), self._busy_s()
        return end

    def refresh(self, workers: int) -> None:
        """Writes down what is otherwise read when it is scraped: by another process, then.

        Args:
            workers: Whose busy ratios add up to the server's.
        """
        self._busy_ratio.set(self._read_busy_ratio() / workers)
        self.queue_images.set(self._read_queue())

    def _read_queue(self) -> int:
        return sum(queued() for _, queued, _ in self._watched.values())

    def _busy_s(self) -> float:
        return sum(busy_s() for busy_s, _, _ in self._watched.values())

    def _read_busy_ratio(self) -> float:
        now, busy = time.monotonic(), self._busy_s()
        instances = sum(count for _, _, count in self._watched.values())
        share = (busy - self._seen[1]) / max(1e-9, (now - self._seen[0]) * instances)
        self._seen = now, busy
        return min(1.0, share)

    def describe(self, engine: Engine, version: str) -> None:
        """States what serves, and nothing else any more."""
        spec, info = engine.spec, engine.info
        said = (version, spec.name, spec.version, info.engine, info.provider, info.precision)
        if not _IS_SHARED:
            self._build_info.clear()
        elif self._said not in ((), said):  # shared files forget nothing
            self._build_info.labels(*self._said).set(0)
        self._build_info.labels(*said).set(1)
        self._said = said

    def render(self) -> bytes:
        """Returns the metrics in Prometheus' text format; of all workers, where there are some."""
        if _IS_SHARED:
            together = CollectorRegistry()
            multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
            return generate_latest(together)
        return generate_latest(self.registry)
