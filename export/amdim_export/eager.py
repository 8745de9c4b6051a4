"""The truth that artifacts are measured against: the trained encoder, run by PyTorch in float32.

Knows neither the fused graph nor ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amdim_export.names import EMBEDDING, GLOBAL, LOCAL5, LOCAL7
from amdim_training.checkpoint import Checkpoint
from amdim_training.search_vector import search_features
from amdim_training.whitening import Whitening

Vectors = dict[str, npt.NDArray[np.float32]]


def reference_vectors(
    checkpoint: Checkpoint,
    whitening: Whitening | None,
    pixels: npt.NDArray[np.uint8],
    *,
    only: Sequence[str] = (),
    batch_size: int = 64,
) -> Vectors:
    """Returns served outputs of (N, S, S, 3) pictures (all, or `only` some), as trained."""
    parts: dict[str, list[Tensor]] = {}
    encoder = checkpoint.encoder
    for start in range(0, len(pixels), batch_size):
        planes = _planes(checkpoint, torch.from_numpy(pixels[start : start + batch_size]))
        with torch.inference_mode():
            features = encoder(planes)
            served = {
                GLOBAL: features.f1,
                LOCAL5: features.f5.permute(0, 2, 3, 1),
                LOCAL7: features.f7.permute(0, 2, 3, 1),
            }
            if whitening is not None:
                served[EMBEDDING] = whitening.apply(search_features(encoder, planes))
        for name, value in served.items():
            if not only or name in only:
                parts.setdefault(name, []).append(value)
    return {name: torch.cat(values).contiguous().numpy() for name, values in parts.items()}


def _planes(checkpoint: Checkpoint, images: Tensor) -> Tensor:
    """Returns (N, 3, S, S) normalised of (N, S, S, 3) uint8."""
    mean = torch.tensor(checkpoint.normalization.mean)
    std = torch.tensor(checkpoint.normalization.std)
    return ((images.float() / 255.0 - mean) / std).permute(0, 3, 1, 2).contiguous()
