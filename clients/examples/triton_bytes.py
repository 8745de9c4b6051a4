"""Files to vectors by tritonclient's gRPC: the server decodes, so nothing of ours is needed here.

amdim serve &
python clients/examples/triton_bytes.py cat.jpg dog.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton


def main(paths: list[str], address: str = "127.0.0.1:8001") -> None:
    """Print the cosine of every picture with the first."""
    files = np.array([[Path(path).read_bytes()] for path in paths], np.object_)  # (n, 1)
    image = triton.InferInput("image", list(files.shape), "BYTES")
    image.set_data_from_numpy(files)
    with triton.InferenceServerClient(address) as client:
        outputs = [triton.InferRequestedOutput("embedding")]
        vectors = client.infer("amdim_image", [image], outputs=outputs).as_numpy("embedding")
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for path, cosine in zip(paths, vectors @ vectors[0], strict=True):
        print(f"{cosine:.4f}  {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
