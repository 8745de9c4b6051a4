"""Embed a folder by a running gateway, and search it with Qdrant.

amdim serve &
python clients/examples/search_qdrant.py photos/ query.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

from amdim_clients import EmbedClient


def main(
    folder: str, query: str, url: str = "http://127.0.0.1:8000", store: str = ":memory:"
) -> None:
    """Print the five nearest pictures of `folder` to `query`.

    Args:
        folder: Of JPEGs.
        query: A picture.
        url: The gateway's.
        store: Where Qdrant is; in this process by default, `http://127.0.0.1:6333` for a server.
    """
    paths = sorted(Path(folder).glob("*.jp*g"))
    with EmbedClient(url) as client:
        result = client.embed(paths)
        asked = client.embed([query])["embedding"][0]
    if result.served_by is None:
        raise SystemExit(f"no picture in {folder} could be embedded")
    vectors = result["embedding"]  # (n, E)
    # Named after the encoder: vectors of another one must not get in.
    collection = f"photos-{result.served_by.encoder_digest.removeprefix('sha256:')[:12]}"
    qdrant = QdrantClient(store) if store == ":memory:" else QdrantClient(url=store)
    if not qdrant.collection_exists(collection):
        params = VectorParams(size=vectors.shape[1], distance=Distance.COSINE)
        qdrant.create_collection(collection, vectors_config=params)
    points = [
        PointStruct(id=row, vector=vectors[row].tolist(), payload={"path": str(paths[position])})
        for row, position in enumerate(result.ok)
    ]
    qdrant.upsert(collection, points)
    for found in qdrant.query_points(collection, query=asked.tolist(), limit=5).points:
        assert found.payload is not None
        print(f"{found.score:.4f}  {found.payload['path']}")
    qdrant.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
