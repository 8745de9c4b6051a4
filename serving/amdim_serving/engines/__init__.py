"""What an engine is: a model's spec, and images to vectors.

Knows no engine: `onnxruntime.py` and its neighbours implement this, `opening.py` chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from amdim_clients.contract import ModelSpec


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What really runs, read back from the engine; said in the log, at /model and in metrics."""

    engine: str
    provider: str
    precision: str
    threads: int
    """Of one call, on this process's cores; 0: it computes elsewhere."""
    calls: int = 1
    """At once, at most."""


class Engine(Protocol):
    """One loaded model."""

    @property
    def spec(self) -> ModelSpec:
        """The model's contract."""

    @property
    def info(self) -> EngineInfo:
        """What really runs."""

    @property
    def is_proved(self) -> bool:
        """Whether the canaries speak for it as it is now; False once it may have been replaced."""

    def encode(
        self, images: NDArray[np.uint8], outputs: Sequence[str]
    ) -> Mapping[str, NDArray[np.float32]]:
        """Encodes a batch.

        Args:
            images: (N, S, S, 3) uint8 RGB, C order, N at most `spec.max_batch_size`.
            outputs: Names of `spec.outputs`; nothing else leaves the engine.

        Returns:
            Each output as (N, ...) float32, not normalised.

        Raises:
            EngineError: The engine failed.
        """

    def close(self) -> None:
        """Ends running calls and frees the model; a second call does nothing."""
