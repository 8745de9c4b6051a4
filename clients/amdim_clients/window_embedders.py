"""What turns files into vectors of their windows: an engine in this process, or a gateway.

Embedders like those of `embedders`, of another model: they give `PictureWindows`, of which the
vector of the whole picture is a mean. Knows no storage.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from amdim_clients.embedders import ENGINE_GROUP, Embedder, probe_picture
from amdim_clients.errors import EngineError, ImageError, IndexStoreError
from amdim_clients.inputs import ImageFailure, RequestLimits
from amdim_clients.space import VectorOrigin
from amdim_clients.window_rows import NO_WINDOWS, WINDOW_MEAN, PictureWindows, WindowPlan
from amdim_clients.windows import WindowGrid, decode_windows

if TYPE_CHECKING:
    from amdim_clients.contract import ModelSpec
    from amdim_clients.gateway import EmbedClient
    from amdim_clients.window_results import WindowResult

DEFAULT_WINDOWS_MODEL: Final = "amdim_windows"
# Fewer than of whole pictures: the windows of one can be more than a megabyte of the answer.
WINDOW_LIMITS: Final = RequestLimits(max_images=8)
_BATCH: Final = 8  # pictures held as the pixels of all their scales
_TOO_MANY: Final = "too_many_windows"
_NO_VECTOR: Final = ImageFailure("invalid_embedding", "The encoder gave no usable vector.")

Pixels = list[tuple[WindowGrid, npt.NDArray[np.uint8]]]
_Done = TypeVar("_Done")


class LocalWindows(Protocol):
    """What the entry point `local_windows` opens."""

    spec: ModelSpec

    def encode(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(N, H, W, 3) uint8 as (N, h, w, E) float32."""

    def close(self) -> None:
        """Free the model."""


class WindowEmbedder(Embedder, Protocol):
    """An embedder that gives `PictureWindows`."""

    def with_plan(self, plan: WindowPlan) -> WindowEmbedder:
        """The same model for other windows."""


class LocalWindowEmbedder:
    """Decodes here and encodes with an engine in this process."""

    def __init__(self, encoder: LocalWindows, plan: WindowPlan) -> None:
        """Take over `encoder`."""
        spec = encoder.spec
        self._encoder = encoder
        self.plan: WindowPlan | None = plan
        self._plan = plan
        self.batch_size = _BATCH
        self.window = 2 * _BATCH
        (dim,) = (shape[-1] for shape in spec.outputs.values())
        self.origin = VectorOrigin(
            model=spec.name,
            version=spec.version,
            encoder_digest=spec.encoder_digest,
            preprocess_digest=spec.preprocess_digest,
            artifact_digest=spec.artifact_digest,
            normalized=True,
            outputs={WINDOW_MEAN: (dim,)},
        )

    def with_plan(self, plan: WindowPlan) -> LocalWindowEmbedder:
        """The same model for other windows."""
        other = copy.copy(self)
        other.plan = other._plan = plan
        return other

    def prepare(self, data: bytes) -> Pixels:
        """The pixels of every scale that the picture has not too many windows for."""

        def decode(scales: tuple[float, ...]) -> Pixels:
            return decode_windows(data, self._encoder.spec.preprocess, scales)

        return _with_fewer_scales(self._plan.scales, decode)

    def embed(self, prepared: Sequence[Pixels]) -> list[PictureWindows | ImageFailure]:
        """One entry per image; pictures of one size go through the model together."""
        by_shape: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for picture, scales in enumerate(prepared):
            for scale, (_, pixels) in enumerate(scales):
                by_shape.setdefault(pixels.shape, []).append((picture, scale))
        found: list[list[Any]] = [[None] * len(scales) for scales in prepared]
        for places in by_shape.values():
            pixels = np.stack([prepared[picture][scale][1] for picture, scale in places])
            for (picture, scale), vectors in zip(places, self._encoder.encode(pixels), strict=True):
                found[picture][scale] = vectors
        return [
            _keep(self._plan, [(grid, v) for (grid, _), v in zip(scales, vectors, strict=True)])
            for scales, vectors in zip(prepared, found, strict=True)
        ]

    def close(self) -> None:
        """Free the model."""
        self._encoder.close()


class RemoteWindowEmbedder:
    """Sends files to a gateway, which decodes and encodes them."""

    def __init__(
        self,
        client: EmbedClient,
        plan: WindowPlan,
        *,
        model: str | None = None,
        limits: RequestLimits = WINDOW_LIMITS,
    ) -> None:
        """Take over `client`, and ask it for one picture's windows to learn what it serves.

        Args:
            client: Made with the same `limits`.
            plan: Which windows are kept.
            model: A model of the server; None for its default.
            limits: How calls are cut into requests.

        Raises:
            GatewayError: The server does not answer, or not with windows.
        """
        self._client = client
        self._model = model
        self.plan: WindowPlan | None = plan
        self._plan = plan
        self.batch_size = limits.max_images * limits.concurrency
        self.window = 2 * self.batch_size
        probe = client.embed_windows([probe_picture()], scales=(1.0,), model=model)
        probe.raise_for_errors()
        served = probe.served_by
        if served is None:
            raise EngineError("the server did not say which model it serves")
        ((_, vectors),) = probe.windows[0]
        self.origin = VectorOrigin(
            model=served.model,
            version=served.version,
            encoder_digest=served.encoder_digest,
            preprocess_digest=served.preprocess_digest,
            artifact_digest=served.artifact_digest,
            normalized=True,
            outputs={WINDOW_MEAN: (vectors.shape[-1],)},
        )

    def with_plan(self, plan: WindowPlan) -> RemoteWindowEmbedder:
        """The same model for other windows."""
        other = copy.copy(self)
        other.plan = other._plan = plan
        return other

    def prepare(self, data: bytes) -> bytes:
        """The file as it is."""
        return data

    def embed(self, prepared: Sequence[bytes]) -> list[PictureWindows | ImageFailure]:
        """One entry per image; those with too many windows are asked for again at fewer scales.

        Raises:
            EngineError: The server changed its encoder since the first request.
        """
        result = self._ask(prepared, self._plan.scales)
        return [self._one(result, at, data) for at, data in enumerate(prepared)]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _one(
        self, result: WindowResult, position: int, data: bytes
    ) -> PictureWindows | ImageFailure:
        failure = result.errors.get(position)
        if failure is None:
            return _keep(self._plan, result.windows[position])
        if failure.code != _TOO_MANY or len(self._plan.scales) == 1:
            return failure

        def ask(scales: tuple[float, ...]) -> PictureWindows | ImageFailure:
            again = self._ask([data], scales)
            refused = again.errors.get(0)
            if refused is None:
                return _keep(self._plan, again.windows[0])
            if refused.code == _TOO_MANY:
                raise ImageError(_TOO_MANY)
            return refused

        try:
            return _with_fewer_scales(sorted(self._plan.scales)[:-1], ask)
        except ImageError as error:
            return ImageFailure(error.code, error.message)

    def _ask(self, images: Sequence[bytes], scales: Sequence[float]) -> WindowResult:
        result = self._client.embed_windows(images, scales=scales, model=self._model)
        served = result.served_by
        if served is not None and (
            (served.encoder_digest, served.preprocess_digest)
            != (self.origin.encoder_digest, self.origin.preprocess_digest)
        ):
            raise EngineError("the server changed its encoder; start again")
        return result


def as_window_embedder(embedder: Embedder) -> WindowEmbedder:
    """The embedder, which must be one of windows.

    Raises:
        IndexStoreError: It is not, so neither is the index it was opened for.
    """
    if isinstance(embedder, (LocalWindowEmbedder, RemoteWindowEmbedder)):
        return embedder
    raise IndexStoreError(NO_WINDOWS)


def open_local_windows(repository: Path, model: str = DEFAULT_WINDOWS_MODEL) -> LocalWindows:
    """A model of windows in this process, as the installed serving part provides it.

    Raises:
        EngineError: No engine is installed, or the repository has no such model.
    """
    found = list(metadata.entry_points(group=ENGINE_GROUP, name="local_windows"))
    if not found:
        raise EngineError("no engine is installed: pip install 'amdim-embed[serve,cpu]'")
    if not (repository / model).is_dir():
        raise EngineError(
            f"{repository} has no model {model}, which windows need: "
            "export the encoder with --windows"
        )
    windows: LocalWindows = found[0].load()(repository, model)
    return windows


def _with_fewer_scales(
    scales: Sequence[float], attempt: Callable[[tuple[float, ...]], _Done]
) -> _Done:
    """Long pictures have too many windows at the finest scales, and go without these.

    Raises:
        ImageError: There are too many at the first scale already, or it is no usable picture.
    """
    ordered = tuple(sorted(scales))
    for count in range(len(ordered), 1, -1):
        try:
            return attempt(ordered[:count])
        except ImageError as error:
            if error.code != _TOO_MANY:
                raise
    return attempt(ordered[:1])


def _keep(
    plan: WindowPlan, grids: Sequence[tuple[WindowGrid, npt.NDArray[np.float32]]]
) -> PictureWindows | ImageFailure:
    for _, vectors in grids:
        if not np.isfinite(vectors).all() or not np.linalg.norm(vectors, axis=-1).all():
            return _NO_VECTOR
    return plan.keep(grids)
