"""Draws what the shipped encoder finds in pictures that may be shown, good and bad.

    python benchmarks/neighbors_sheet.py docs/neighbors.jpg

Grocery Store's natural photos (MIT, (c) 2019 Marcus Klasson) ask among each other, themselves left
out. Nobody picks the rows: queries are ordered by the average precision of their ranking, and the
ones at fixed places of that order are drawn, best first, each with its nearest photos.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image
from search_quality import Models

from amdim_clients.sheet import Tile, contact_sheet

ROOT = Path(__file__).resolve().parents[1]
PLACES = (0.97, 0.85, 0.65, 0.4, 0.2, 0.03)
"""Where in the order of all queries, 0 the worst; the rows of the sheet."""
NEIGHBORS = 5
WIDTH = 840  # pixels
MOST_BYTES = 300_000
CREDIT = "Photos: Grocery Store data set, MIT licence, (c) 2019 Marcus Klasson"


def main(argv: list[str] | None = None) -> int:
    """Encodes, ranks, draws and says what each row shows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", type=Path, help="the JPEG file to write")
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    pack = ROOT.parent / "shared" / "data" / "grocery_retrieval.parquet"
    parser.add_argument("--pack", type=Path, default=pack)
    arguments = parser.parse_args(argv)
    table = pq.read_table(arguments.pack, filters=[("split", "=", "natural")])
    files = [image["bytes"] for image in table["image"].to_pylist()]
    labels = np.array(table["label"].to_pylist(), dtype=np.int64)
    vectors = Models.open(arguments.repository).wholes(files)
    order = ranking(vectors)
    precisions = average_precisions(labels[order] == labels[:, None])
    queries = np.argsort(precisions, kind="stable")[[int(p * len(files)) for p in PLACES]]
    names = product_names(arguments.pack, labels)
    rows = [draw_row(int(query), order[query], files, labels, names) for query in queries]
    sheet = stacked(rows)
    arguments.target.write_bytes(as_jpeg(sheet))
    for query in queries:
        print(f"{names[query]}: average precision {precisions[query]:.2f}")
    print(f"{arguments.target}: mean average precision of all {precisions.mean():.3f}")
    return 0


def product_names(pack: Path, labels: npt.NDArray[np.int64]) -> list[str]:
    """Returns each photo's product, by the pack's own names of its labels."""
    metadata = pq.read_schema(pack).metadata or {}
    known = json.loads(metadata[b"label_names"])
    return [str(known[label]) for label in labels]


def ranking(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Returns (N, N - 1): for each of N unit vectors the others, nearest first."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :-1]


def average_precisions(hits: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Returns (Q,) average precision of (Q, N) answers in order; 0 where there is no right one."""
    at = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    precisions: npt.NDArray[np.float64] = (at * hits).sum(axis=1) / hits.sum(axis=1).clip(min=1)
    return precisions


def draw_row(
    query: int,
    order: npt.NDArray[np.int64],
    files: Sequence[bytes],
    labels: npt.NDArray[np.int64],
    names: Sequence[str],
) -> Image.Image:
    """Returns a query and its nearest photos, each captioned by whether it is the same product."""
    found = [
        Tile(
            (f"{rank}. {names[at]}", "same product" if labels[at] == labels[query] else "another"),
            files[at],
        )
        for rank, at in enumerate(order[:NEIGHBORS], start=1)
    ]
    return contact_sheet(Tile((names[query], "query"), files[query]), found)


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Returns rows of one width below each other, at the sheet's width."""
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    size = WIDTH, round(sheet.height * WIDTH / sheet.width)
    return sheet.resize(size, Image.Resampling.LANCZOS)


def as_jpeg(sheet: Image.Image) -> bytes:
    """Returns a JPEG file of at most so many bytes, at the best quality that allows it."""
    for quality in range(90, 40, -5):
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=quality, optimize=True, comment=CREDIT)
        if buffer.tell() <= MOST_BYTES:
            return buffer.getvalue()
    raise SystemExit(f"the sheet stays above {MOST_BYTES} bytes")


if __name__ == "__main__":
    sys.exit(main())
