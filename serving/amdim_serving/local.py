"""The engine without a server: what the clients' commands encode with when given no address.

Found through the entry point group `amdim.engines`; knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amdim_clients.contract import ModelSpec
from amdim_serving.engines import Engine
from amdim_serving.opening import open_model


class LocalEncoder:
    """An engine in this process that takes any number of images."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.spec: ModelSpec = engine.spec

    def encode(
        self, images: NDArray[np.uint8], outputs: Sequence[str]
    ) -> Mapping[str, NDArray[np.float32]]:
        """Encodes images, a batch at a time.

        Args:
            images: (N, S, S, 3) uint8 RGB, C order, any N.
            outputs: Names of `spec.outputs`.

        Returns:
            Each output as (N, ...) float32, not normalised.

        Raises:
            EngineError: The engine failed.
        """
        size = self.spec.max_batch_size
        parts = [
            self._engine.encode(images[at : at + size], outputs)
            for at in range(0, max(1, len(images)), size)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def close(self) -> None:
        """Frees the model."""
        self._engine.close()


def open_local_encoder(repository: Path, model: str) -> LocalEncoder:
    """Opens the highest version of a model; its canaries have been checked on return.

    Raises:
        StartError: The model cannot be served; the text says why.
    """
    return LocalEncoder(open_model(repository, model).engine)
