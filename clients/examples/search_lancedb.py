"""Index a folder with an engine in this process, and search it; no server is needed.

python clients/examples/search_lancedb.py photos/ query.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

from amdim_clients.embedders import LocalEmbedder, default_repository, open_local_encoder
from amdim_clients.indexing import update_index
from amdim_clients.lance_index import open_or_create_index
from amdim_clients.searching import find_neighbors, read_query


def main(folder: str, query: str, db: str = "photos.lancedb") -> None:
    """Bring the index up to date with `folder`, then print the neighbours of `query`."""
    embedder = LocalEmbedder(open_local_encoder(default_repository()))
    index = open_or_create_index(Path(db), embedder.origin.space("embedding"))
    report = update_index([folder], embedder, index, output="embedding")
    print(f"{report.added} added, {report.unchanged} unchanged, {report.removed} removed")
    found = find_neighbors(read_query(query), embedder, index, count=5)
    for key, score in zip(found.keys, found.scores, strict=True):
        print(f"{score:.4f}  {key}")
    embedder.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
