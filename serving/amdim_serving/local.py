"""The engine without a server: what the clients' commands encode with when given no address.

Found through the entry point group `amdim.engines`; knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amdim_clients.contract import WINDOWS, ModelSpec
from amdim_serving.engines import Engine
from amdim_serving.errors import StartError
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


class LocalWindows:
    """An engine in this process that gives the vectors of every window of larger pictures."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.spec: ModelSpec = engine.spec

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encodes one picture or several of one size.

        Args:
            pixels: (H, W, 3) or (N, H, W, 3) uint8 RGB, any N; H and W are S and a multiple of
                S/8 more, as `amdim_clients.windows` makes them.

        Returns:
            (h, w, E) or (N, h, w, E) float32, not normalised.

        Raises:
            EngineError: The engine failed.
        """
        if pixels.ndim == 3:
            one: NDArray[np.float32] = self._run(pixels[None])[0]
            return one
        size = self.spec.max_batch_size
        starts = range(0, max(1, len(pixels)), size)
        windows: NDArray[np.float32] = np.concatenate(
            [self._run(pixels[at : at + size]) for at in starts]
        )
        return windows

    def close(self) -> None:
        """Frees the model."""
        self._engine.close()

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._engine.encode(np.ascontiguousarray(pixels), (WINDOWS,))[WINDOWS]


def open_local_windows(repository: Path, model: str = "amdim_windows") -> LocalWindows:
    """Opens the highest version of a model of windows; its canaries have been checked on return.

    Raises:
        StartError: The model cannot be served; the text says why.
    """
    engine = open_model(repository, model).engine
    if not engine.spec.gives_windows:
        engine.close()
        raise StartError(f"{model} is no model of windows; {model}_windows would be its name")
    return LocalWindows(engine)
