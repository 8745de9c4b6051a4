"""What every peer does to a photo, in its own environment: the same pixels, the same ONNX file.

AMDIM_PEER_MODEL     the model.onnx
AMDIM_PEER_SIZE      the side of its pixels
AMDIM_PEER_THREADS   threads of one call of ONNX Runtime; 0: its own default
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amdim_clients.images import Preprocess, decode_image

# Read while it loads: without it ONNX Runtime (1.32) tells Microsoft how it is used.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

_PREPROCESS = Preprocess.for_image_size(int(os.environ["AMDIM_PEER_SIZE"]))


def open_session() -> ort.InferenceSession:
    """Returns the encoder."""
    options = ort.SessionOptions()
    threads = int(os.environ["AMDIM_PEER_THREADS"])
    if threads:
        options.intra_op_num_threads = threads
    path = os.environ["AMDIM_PEER_MODEL"]
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def decode(data: bytes) -> NDArray[np.uint8]:
    """Returns a file's pixels, (S, S, 3)."""
    return decode_image(data, _PREPROCESS).pixels


def encode(
    session: ort.InferenceSession, pixels: Sequence[NDArray[np.uint8]]
) -> NDArray[np.float32]:
    """Returns a unit vector an image, (N, E)."""
    (vectors,) = session.run(["embedding"], {"images": np.stack(pixels)})
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
