"""What one model has computed, counted as Triton's statistics count it.

Knows no protocol; KServe v2's REST and gRPC faces render it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Duration:
    """A count of events and the nanoseconds they took together."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Counts one more event."""
        self.count += 1
        self.ns += int(seconds * 1e9)


@dataclass(slots=True)
class ModelStats:
    """Requests and batches since the server started; failed ones are not inferences."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, Duration] = field(default_factory=dict)
    """Executions by batch size."""
    inference_count: int = 0
    """Images of successful requests."""
    last_inference_ms: int = 0
    """Milliseconds since the epoch."""

    @property
    def execution_count(self) -> int:
        """Batches that ran to their end."""
        return sum(duration.count for duration in self.batches.values())

    def batch(self, images: int, seconds: float) -> None:
        """Counts a batch that ran to its end."""
        self.batches.setdefault(images, Duration()).add(seconds)

    def succeeded(
        self, images: int, seconds: float, *, queue_s: float, input_s: float, infer_s: float
    ) -> None:
        """Counts a request that got its vectors.

        Args:
            images: That were encoded.
            seconds: From its admission to its vectors.
            queue_s: Its slowest image's wait for the engine.
            input_s: Its slowest image's decode.
            infer_s: Its slowest image's batch.
        """
        self.success.add(seconds)
        self.queue.add(queue_s)
        self.compute_input.add(input_s)
        self.compute_infer.add(infer_s)
        self.compute_output.add(max(0.0, seconds - queue_s - input_s - infer_s))
        self.inference_count += images
        self.last_inference_ms = time.time_ns() // 1_000_000

    def failed(self, seconds: float) -> None:
        """Counts a request that got none."""
        self.fail.add(seconds)
