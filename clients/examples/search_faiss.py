"""Embed a folder by a running gateway, and search it with FAISS.

amdim serve &
python clients/examples/search_faiss.py photos/ query.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import faiss

from amdim_clients import EmbedClient


def main(folder: str, query: str, url: str = "http://127.0.0.1:8000") -> None:
    """Print the five nearest pictures of `folder` to `query`."""
    paths = sorted(Path(folder).glob("*.jp*g"))
    with EmbedClient(url) as client:
        result = client.embed(paths)
        asked = client.embed([query])["embedding"]
    if result.served_by is None:
        raise SystemExit(f"no picture in {folder} could be embedded")
    vectors = result["embedding"]  # (n, E), length 1: inner products are cosines
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    # The index knows no encoder: keep the digest beside the file, and compare it before searching.
    faiss.write_index(index, "photos.faiss")
    Path("photos.faiss.digest").write_text(result.served_by.encoder_digest)
    scores, rows = index.search(asked, min(5, len(vectors)))
    for score, row in zip(scores[0], rows[0], strict=True):
        print(f"{score:.4f}  {paths[result.ok[row]]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
