"""What turns files into vectors: an engine in this process, or a gateway.

Both look alike to the pipeline: `prepare` runs in its threads, `embed` takes a batch of what that
gave. The engine is found through an entry point, so that clients import no server.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from amdim_clients.errors import EngineError
from amdim_clients.gateway import EmbedClient
from amdim_clients.images import decode_image
from amdim_clients.inputs import ImageFailure, RequestLimits
from amdim_clients.space import VectorOrigin
from amdim_clients.window_rows import PictureWindows, WindowPlan

if TYPE_CHECKING:
    from amdim_clients.contract import ModelSpec

ENGINE_GROUP = "amdim.engines"
DEFAULT_MODEL = "amdim"

# Prepared pictures are small where they are pixels, and whole files where a gateway gets them.
_BATCHES_PREPARED = 4
# Requests of 8 cost a client a sixth more CPU an image (measured); much larger ones gain little.
REMOTE_LIMITS = RequestLimits(max_images=16)

Vectors = Mapping[str, npt.NDArray[np.float32]]  # output -> one image's array


class LocalEncoder(Protocol):
    """What the entry point `local` opens."""

    spec: ModelSpec

    def encode(
        self, images: npt.NDArray[np.uint8], outputs: Sequence[str]
    ) -> Mapping[str, npt.NDArray[np.float32]]:
        """Each output as (N, ...) float32 for (N, S, S, 3) uint8 images."""

    def close(self) -> None:
        """Free the model."""


class Embedder(Protocol):
    """Files' bytes in, vectors out."""

    origin: VectorOrigin
    plan: WindowPlan | None  # where it gives windows too
    batch_size: int  # images that `embed` likes to get at once
    window: int  # images that may be held prepared or in preparation

    def prepare(self, data: bytes) -> Any:
        """What `embed` takes for one image; called from several threads.

        Raises:
            ImageError: The bytes are not a usable picture.
        """

    def embed(self, prepared: Sequence[Any]) -> Sequence[Vectors | PictureWindows | ImageFailure]:
        """One entry per image, order kept."""

    def close(self) -> None:
        """Free what is held."""


class LocalEmbedder:
    """Decodes here and encodes with an engine in this process."""

    def __init__(
        self, encoder: LocalEncoder, *, outputs: Sequence[str] | None = None, normalize: bool = True
    ) -> None:
        """Take over `encoder`; `outputs` default to the model's own.

        Raises:
            EngineError: The model lacks one of the outputs.
        """
        spec = encoder.spec
        self._names = tuple(outputs) if outputs else (spec.default_output,)
        _check_outputs(self._names, spec.outputs)
        self._encoder = encoder
        self.plan: WindowPlan | None = None
        self.batch_size = spec.max_batch_size
        self.window = _BATCHES_PREPARED * spec.max_batch_size
        self.origin = VectorOrigin(
            model=spec.name,
            version=spec.version,
            encoder_digest=spec.encoder_digest,
            preprocess_digest=spec.preprocess_digest,
            artifact_digest=spec.artifact_digest,
            normalized=normalize,
            outputs={name: spec.outputs[name] for name in self._names},
        )

    def prepare(self, data: bytes) -> npt.NDArray[np.uint8]:
        """The encoder's pixels, (S, S, 3)."""
        return decode_image(data, self._encoder.spec.preprocess).pixels

    def embed(self, prepared: Sequence[npt.NDArray[np.uint8]]) -> list[Vectors | ImageFailure]:
        """One entry per image; a vector that is zero or not finite is a failure."""
        arrays = self._encoder.encode(np.stack(prepared), self._names)
        return [
            self._finish({name: arrays[name][row] for name in self._names})
            for row in range(len(prepared))
        ]

    def close(self) -> None:
        """Free the model."""
        self._encoder.close()

    def _finish(self, vectors: dict[str, npt.NDArray[np.float32]]) -> Vectors | ImageFailure:
        for name, vector in vectors.items():
            length = np.linalg.norm(vector, axis=-1, keepdims=True)
            if not np.isfinite(vector).all() or not length.all():
                return ImageFailure("invalid_embedding", "The encoder gave no usable vector.")
            if self.origin.normalized:
                vectors[name] = vector / length
        return vectors


class RemoteEmbedder:
    """Sends files to a gateway, which decodes and encodes them."""

    def __init__(
        self,
        client: EmbedClient,
        *,
        model: str | None = None,
        outputs: Sequence[str] | None = None,
        normalize: bool = True,
        limits: RequestLimits = REMOTE_LIMITS,
    ) -> None:
        """Take over `client`, and ask it for one picture's vectors to learn what it serves.

        Args:
            client: Made with the same `limits`.
            model: A model of the server; None for its default.
            outputs: Names of outputs; None for the model's default.
            normalize: Whether vectors are scaled to length 1.
            limits: How calls are cut into requests.

        Raises:
            GatewayError: The server does not answer, or not with vectors.
        """
        self._client = client
        self.plan: WindowPlan | None = None
        self._options: dict[str, Any] = {
            "model": model,
            "outputs": tuple(outputs) if outputs else None,
            "normalize": normalize,
        }
        self.batch_size = limits.max_images * limits.concurrency
        self.window = 2 * self.batch_size
        probe = client.embed([probe_picture()], **self._options).raise_for_errors()
        if probe.served_by is None:
            raise EngineError("the server did not say which model it serves")
        served = probe.served_by
        self.origin = VectorOrigin(
            model=served.model,
            version=served.version,
            encoder_digest=served.encoder_digest,
            preprocess_digest=served.preprocess_digest,
            artifact_digest=served.artifact_digest,
            normalized=served.normalized,
            outputs={name: array.shape[1:] for name, array in probe.arrays.items()},
        )

    def prepare(self, data: bytes) -> bytes:
        """The file as it is."""
        return data

    def embed(self, prepared: Sequence[bytes]) -> list[Vectors | ImageFailure]:
        """One entry per image.

        Raises:
            EngineError: The server changed its encoder since the first request.
        """
        result = self._client.embed(prepared, **self._options)
        served = result.served_by
        if served is not None and (
            (served.encoder_digest, served.preprocess_digest)
            != (self.origin.encoder_digest, self.origin.preprocess_digest)
        ):
            raise EngineError("the server changed its encoder; start again")
        row_of = {int(position): row for row, position in enumerate(result.ok)}
        return [
            result.errors[position]
            if position in result.errors
            else {name: array[row_of[position]] for name, array in result.arrays.items()}
            for position in range(len(prepared))
        ]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def open_local_encoder(repository: Path, model: str = DEFAULT_MODEL) -> LocalEncoder:
    """An engine in this process, as the installed serving part provides it.

    Raises:
        EngineError: No engine is installed.
    """
    found = list(metadata.entry_points(group=ENGINE_GROUP, name="local"))
    if not found:
        raise EngineError("no engine is installed: pip install 'amdim-embed[serve,cpu]'")
    encoder: LocalEncoder = found[0].load()(repository, model)
    return encoder


def default_repository() -> Path:
    """`./model_repository`, else the one beside the source checkout.

    Raises:
        EngineError: There is neither.
    """
    candidates = (
        Path("model_repository"),
        Path(__file__).resolve().parents[2] / "model_repository",
    )
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise EngineError("no model_repository folder here: name one with --repository, or a --url")


def _check_outputs(names: Sequence[str], known: Mapping[str, tuple[int, ...]]) -> None:
    for name in names:
        if name not in known:
            raise EngineError(f"the model has no output {name}, only {', '.join(known)}")


def probe_picture() -> bytes:
    """A picture to learn from the answer what a server serves."""
    ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    return buffer.getvalue()
