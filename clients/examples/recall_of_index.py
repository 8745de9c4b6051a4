"""Index a labelled Parquet pack and print how often the nearest other picture has the same label.

    python clients/examples/recall_of_index.py grocery_retrieval.parquet --split natural

Every picture of the split is searched for among the others of the split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from amdim_clients.embedders import LocalEmbedder, default_repository, open_local_encoder
from amdim_clients.indexing import update_index
from amdim_clients.lance_index import LanceIndex, open_or_create_index
from amdim_clients.searching import find_neighbors
from amdim_clients.walk import walk_images


def main(pack: str, split: str | None, db: str, repository: str | None) -> float:
    """Print and return recall@1."""
    embedder = LocalEmbedder(open_local_encoder(Path(repository or default_repository())))
    index = open_or_create_index(Path(db), embedder.origin.space("embedding"))
    update_index([pack], embedder, index, output="embedding")
    label_of = labels(pack, split)
    hits = [
        nearest_other(source.key, source.read(), embedder, index, label_of) == label_of[source.key]
        for source in walk_images([pack])
        if source.key in label_of
    ]
    recall = float(np.mean(hits))
    print(f"recall@1 {recall:.3f} over {len(hits)} pictures of {Path(pack).name}")
    embedder.close()
    return recall


def labels(pack: str, split: str | None) -> dict[str, int]:
    """The label of every key of the split."""
    table = pq.read_table(pack, columns=["label", *(["split"] if split else [])])
    rows = zip(walk_images([pack]), table.to_pylist(), strict=True)
    return {
        source.key: row["label"] for source, row in rows if split is None or row["split"] == split
    }


def nearest_other(
    key: str, data: bytes, embedder: LocalEmbedder, index: LanceIndex, label_of: dict[str, int]
) -> int | None:
    """The label of the nearest picture of the split that is not the query itself."""
    found = find_neighbors(data, embedder, index, count=len(index), exact=True)
    others = (other for other in found.keys if other != key and other in label_of)
    return label_of[next(others)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack")
    parser.add_argument("--split", help="only rows whose column `split` says so")
    parser.add_argument("--db", default="pack.lancedb", help="where the index is kept")
    parser.add_argument("--repository", help="model repository; default ./model_repository")
    arguments = parser.parse_args()
    main(arguments.pack, arguments.split, arguments.db, arguments.repository)
