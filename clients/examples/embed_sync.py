"""Embed pictures by a running gateway and compare them.

amdim serve &
python clients/examples/embed_sync.py cat.jpg other_cat.jpg dog.jpg
"""

from __future__ import annotations

import sys

from amdim_clients import EmbedClient


def main(paths: list[str], url: str = "http://127.0.0.1:8000") -> None:
    """Print how alike every picture is to the first, as a cosine."""
    with EmbedClient(url) as client:
        result = client.embed(paths)
    for position, failure in result.errors.items():
        print(f"{paths[position]}: {failure.message}")
    vectors = result["embedding"]  # (n, E), length 1: their products are cosines
    for position, cosine in zip(result.ok, vectors @ vectors[0], strict=True):
        print(f"{cosine:.4f}  {paths[position]}")


if __name__ == "__main__":
    main(sys.argv[1:])
