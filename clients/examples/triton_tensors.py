"""Pixels to vectors by tritonclient's gRPC: the same against Triton and against the gateway.

amdim serve &
python clients/examples/triton_tensors.py cat.jpg dog.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from amdim_clients.images import Preprocess, decode_image


def main(paths: list[str], address: str = "127.0.0.1:8001") -> None:
    """Print the cosine of every picture with the first."""
    with triton.InferenceServerClient(address) as client:
        metadata = client.get_model_metadata("amdim")
        preprocess = Preprocess.for_image_size(metadata.inputs[0].shape[1])
        pixels = np.stack(
            [decode_image(Path(path).read_bytes(), preprocess).pixels for path in paths]
        )  # (n, S, S, 3) uint8
        images = triton.InferInput("images", list(pixels.shape), "UINT8")
        images.set_data_from_numpy(pixels)
        outputs = [triton.InferRequestedOutput("embedding")]
        vectors = client.infer("amdim", [images], outputs=outputs).as_numpy("embedding")
    # This protocol gives vectors as the model does: not of length 1.
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for path, cosine in zip(paths, vectors @ vectors[0], strict=True):
        print(f"{cosine:.4f}  {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
