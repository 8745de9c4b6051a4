"""Frozen encoders as functions of pixels: a checkpoint, an exported model or a reference file.

What is scored is the vectors, wherever they come from. Knows no labels and no scores.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from amdim_training.checkpoint import load_checkpoint, resolve
from amdim_training.config import ViewsName
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import CheckpointError
from amdim_training.reference import load_reference
from amdim_training.search_vector import encode_for_search, fit_search_vector
from amdim_training.views import PIPELINE_OF, VIEWS, Normalization
from amdim_training.whitening import Whitening

EMBEDDING_FILE = "embedding.safetensors"
FEATURES = ("embedding", "global", "mean5", "mean7")
"""What can be scored: the search vector, f1, and the means of f5 and f7 over their grids."""

Pixels = npt.NDArray[np.uint8]


class Vectors(NamedTuple):
    """What an encoder says of N images, float32 on the CPU.

    Attributes:
        pooled: (N, 3D): f1, the mean of f5 and the mean of f7.
        embedding: (N, E), the model's own search vector; None where it has none.
    """

    pooled: Tensor
    embedding: Tensor | None


class FrozenEncoder(Protocol):
    """Anything that turns pixels into AMDIM's vectors."""

    @property
    def image_size(self) -> int:
        """Side S of the pictures it takes, pixels."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What it is, as JSON values."""

    @property
    def pipeline(self) -> ViewsName:
        """The augmentation it was trained with, or the reference's for its size."""

    @property
    def source_size(self) -> int:
        """Side of the training pictures that views are cut from, pixels."""

    @property
    def has_embedding(self) -> bool:
        """Whether it has a search vector."""

    def encode(self, pixels: Pixels) -> Vectors:
        """Returns the vectors of (N, S, S, 3) uint8 pictures."""

    def fit(self, pixels: Pixels, components: int) -> bool:
        """Fits a search vector on training pictures (N, S, S, 3); whether that can be done."""


class TorchEncoder:
    """A checkpoint's encoder in float32."""

    def __init__(
        self,
        encoder: AmdimEncoder,
        normalization: Normalization,
        whitening: Whitening | None = None,
        *,
        facts: Mapping[str, Any] | None = None,
        pipeline: ViewsName | None = None,
        source_size: int = 0,
        batch: int = 64,
    ) -> None:
        size = encoder.config.image_size
        self.pipeline: ViewsName = pipeline or PIPELINE_OF[size]
        self.source_size: int = source_size or size
        self.encoder: AmdimEncoder = encoder.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.normalization = normalization
        self._whitening = whitening
        self._batch = batch
        self.facts = dict(facts or {})

    @property
    def image_size(self) -> int:
        """Side S of the pictures it takes, pixels."""
        size: int = self.encoder.config.image_size
        return size

    @property
    def has_embedding(self) -> bool:
        """Whether it has a search vector."""
        return self._whitening is not None

    def encode(self, pixels: Pixels) -> Vectors:
        """Returns the vectors of (N, S, S, 3) uint8 pictures."""
        scales, features = encode_for_search(
            self.encoder, torch.from_numpy(pixels), self.normalization, batch=self._batch
        )
        return Vectors(scales, None if self._whitening is None else self._whitening.apply(features))

    def fit(self, pixels: Pixels, components: int) -> bool:
        """Fits a search vector on training pictures (N, S, S, 3), in place of its own."""
        self._whitening = fit_search_vector(
            self.encoder,
            torch.from_numpy(pixels),
            self.normalization,
            min(components, len(pixels) - 1),
            batch=self._batch,
        )
        return True


class OnnxEncoder:
    """An exported model file on ONNX Runtime's CPU provider."""

    def __init__(self, path: Path, *, batch: int = 64) -> None:
        # read while it loads: without it ONNX Runtime (1.32) tells Microsoft how it is used
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime as ort

        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        missing = {"global", "local5", "local7"} - set(self._outputs)
        if missing:
            raise CheckpointError(f"{path} has no output named {sorted(missing)[0]}")
        self._size = int(self._session.get_inputs()[0].shape[1])
        self._batch = batch
        self.facts = {"model": str(path), "image_size": self._size}
        self.pipeline: ViewsName = PIPELINE_OF[self._size]
        self.source_size = self._size

    @property
    def image_size(self) -> int:
        """Side S of the pictures it takes, pixels."""
        return self._size

    @property
    def has_embedding(self) -> bool:
        """Whether it has a search vector."""
        return "embedding" in self._outputs

    def fit(self, pixels: Pixels, components: int) -> bool:
        """Fits nothing: the graph gives no more than its outputs."""
        return False

    def encode(self, pixels: Pixels) -> Vectors:
        """Returns the vectors of (N, S, S, 3) uint8 pictures."""
        pooled, embeddings = [], []
        for start in range(0, len(pixels), self._batch):
            values = self._session.run(None, {"images": pixels[start : start + self._batch]})
            named = dict(zip(self._outputs, values, strict=True))
            means = [named["global"], *(named[k].mean(axis=(1, 2)) for k in ("local5", "local7"))]
            pooled.append(np.concatenate(means, axis=1))
            if "embedding" in named:
                embeddings.append(named["embedding"])
        embedding = torch.from_numpy(np.concatenate(embeddings)) if embeddings else None
        return Vectors(torch.from_numpy(np.concatenate(pooled)), embedding)


def open_encoder(path: str | Path, *, device: str = "cpu") -> FrozenEncoder:
    """Opens what a path means: a checkpoint or run folder, an exported model, a reference file.

    Args:
        path: A checkpoint or run folder; a model repository, a model's folder in it, one version
            of it or a `.onnx` file; or a `.pth`/`.ckpt` file of the original program or its port,
            whose pixels are normalised as its image size was in SPEC.md 5.
        device: Where a checkpoint's encoder runs.

    Raises:
        CheckpointError: There is none of these, or it is broken.
    """
    path = Path(path)
    if path.is_file() and path.suffix != ".onnx":
        encoder, config, _ = load_reference(path)
        normalization = VIEWS[PIPELINE_OF[config.image_size]].normalization
        return TorchEncoder(encoder.to(device), normalization, facts={"checkpoint": str(path)})
    exported = _exported_model(path)
    if exported is not None:
        return OnnxEncoder(exported)
    folder = resolve(path)
    checkpoint = load_checkpoint(folder)
    facts = {"checkpoint": str(folder)}
    for key in ("step", "steps", "digest"):
        if key in checkpoint.meta:
            facts[key] = checkpoint.meta[key]
    trained = checkpoint.meta.get("train", {}).get("data", {})
    return TorchEncoder(
        checkpoint.encoder.to(device),
        checkpoint.normalization,
        _whitening(folder),
        facts=facts,
        pipeline=trained.get("views"),
        source_size=trained.get("source_size", 0),
    )


def _exported_model(path: Path) -> Path | None:
    """Returns the newest `model.onnx` that a path means; None where it means no exported model."""
    if path.is_file():
        return path
    if (path / "model.onnx").is_file():
        return path / "model.onnx"
    if not (path / "config.pbtxt").is_file():
        path = path / "amdim"  # a model repository
    versions = [folder for folder in path.glob("*") if folder.name.isdigit()]
    found = [folder for folder in versions if (folder / "model.onnx").is_file()]
    if not found:
        return None
    return max(found, key=lambda folder: int(folder.name)) / "model.onnx"


def _whitening(folder: Path) -> Whitening | None:
    path = folder / EMBEDDING_FILE
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        return Whitening(tensors["mean"].float(), tensors["projection"].float())
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path} is not a fitted embedding: {error}") from error
