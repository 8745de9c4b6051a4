"""Pictures to vectors by OpenAI's own client, given as data URIs.

amdim serve &
python clients/examples/openai_client.py cat.jpg dog.jpg
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import numpy as np
from openai import OpenAI


def main(paths: list[str], url: str = "http://127.0.0.1:8000") -> None:
    """Print the cosine of every picture with the first."""
    # The server looks at the bytes, not at the type that the URI names.
    uris = [
        f"data:image/jpeg;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
        for path in paths
    ]
    with OpenAI(base_url=f"{url}/v1", api_key="none, unless the server asks for one") as client:
        answer = client.embeddings.create(model="amdim", input=uris)
    vectors = np.array([item.embedding for item in answer.data], np.float32)  # (n, E), length 1
    for path, cosine in zip(paths, vectors @ vectors[0], strict=True):
        print(f"{cosine:.4f}  {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
