"""What search costs as it grows: the measurements of search.py that need no real pictures, or few.

Synthetic vectors lie in clusters with a decaying spectrum, as embeddings do.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from search_quality import Models, Rows

from amdim_clients.indexing import update_index
from amdim_clients.lance_index import create_index
from amdim_clients.pipeline import Record, embed_sources
from amdim_clients.searching import Sought, find_pictures
from amdim_clients.space import VectorSpace
from amdim_clients.walk import ImageSource, walk_images
from amdim_clients.window_rows import PictureWindows, WindowPlan

Floats = npt.NDArray[np.float32]
DIM = 256
QUERIES = 100
_CHUNK = 50_000
_DIGEST = "sha256:" + "0" * 64


class Clusters:
    """Vectors about so many centres; any part can be drawn again from its seed."""

    def __init__(self, centres: int) -> None:
        rng = np.random.default_rng(0)
        self._basis = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0].astype(np.float32)
        spectrum = 1 / np.sqrt(1 + np.arange(DIM))
        self._spectrum: Floats = np.asarray(0.8 * spectrum / np.linalg.norm(spectrum), np.float32)
        self._centres = _unit(self._noise(rng, centres))

    def draw(self, count: int, seed: int) -> Floats:
        """(count, 256) of length 1."""
        rng = np.random.default_rng(seed)
        chosen = self._centres[rng.integers(0, len(self._centres), count)]
        return _unit(chosen + self._noise(rng, count))

    def _noise(self, rng: np.random.Generator, count: int) -> Floats:
        drawn = rng.standard_normal((count, DIM), dtype=np.float32)
        noise = np.asarray((drawn * self._spectrum) @ self._basis, np.float32)
        return noise


def scale(sizes: list[int]) -> Rows:
    """Approximate against exact search, and what an index of each size takes."""
    return {f"{size:,} vectors": _one_size(size) for size in sizes}


def _one_size(size: int) -> dict[str, float]:
    clusters = Clusters(max(10, size // 100))
    space = VectorSpace("synthetic", "embedding", DIM, True, _DIGEST, _DIGEST)
    folder = Path(tempfile.mkdtemp())
    try:
        index = create_index(folder / "db", space)
        started = time.perf_counter()
        for start in range(0, size, _CHUNK):
            count = min(_CHUNK, size - start)
            records = [
                Record(f"/photos/{n:08}.jpg", f"{n:064x}") for n in range(start, start + count)
            ]
            vectors = clusters.draw(count, 1 + start)
            index.add(records, vectors, space=space, artifact_digest=_DIGEST)
        added = time.perf_counter()
        index.tune()
        tuned = time.perf_counter()
        queries = clusters.draw(QUERIES, 0)
        exact = index.search(queries[:30], 10, space=space, exact=True)
        near = index.search(queries[:30], 10, space=space)
        shared = [len(set(n.keys) & set(e.keys)) / 10 for n, e in zip(near, exact, strict=True)]
        latency = [_seconds(index.search, q[None], 10, space=space) for q in queries]
        exactly = [
            _seconds(index.search, q[None], 10, space=space, exact=True) for q in queries[:20]
        ]
        pictures = [_seconds(find_pictures, Sought(q), index, count=10) for q in queries[:20]]
        taken = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return {
            "recall@10": float(np.mean(shared)),
            "p50 ms": 1000 * float(np.median(latency)),
            "p99 ms": 1000 * float(np.quantile(latency, 0.99)),
            "exact p50 ms": 1000 * float(np.median(exactly)),
            "find_pictures p50 ms": 1000 * float(np.median(pictures)),
            "bytes a picture": taken / size,
            "add s": added - started,
            "tune s": tuned - added,
            "peak memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        }
    finally:
        shutil.rmtree(folder)


def cost(models: Models, data: Path, copies: int) -> Rows:
    """What indexing adds to embedding, and windows to one picture.

    Args:
        models: Of the repository.
        data: Folder of the packs.
        copies: How often the 128 pictures are indexed, each time as other ones.
    """
    table = pq.read_table(data / "coco128_val_boxes.parquet", columns=["image"])
    files = [image["bytes"] for image in table["image"].to_pylist()]
    folder = Path(tempfile.mkdtemp())
    try:
        for copy in range(copies):
            for number, file in enumerate(files):
                # A trailing byte makes each copy another picture to the index.
                (folder / f"{copy}_{number:03}.jpg").write_bytes(file + bytes([copy]))
        count = copies * len(files)
        turns = [  # so that neither has the machine's better moment
            (_seconds(_embed, folder, models), _seconds(_index, folder, models)) for _ in range(3)
        ]
        embedded, indexed = (min(times) for times in zip(*turns, strict=True))
        small = models.windows.with_plan(WindowPlan((2.0,), 1))
        prepared = [small.prepare(file) for file in files[:32]]
        counts = [len(f) for f in small.embed(prepared) if isinstance(f, PictureWindows)]
        windows = sum(counts)
        at_two = _best(lambda: [small.embed([small.prepare(f)]) for f in files[:32]]) / 32
        crop = _best(lambda: [o for o in embed_sources(_given(files[:32] * 4), models.whole)]) / 128
        return {
            "embedding, ms a picture": {"value": 1000 * embedded / count},
            "indexing, ms a picture": {"value": 1000 * indexed / count},
            "indexing adds, %": {"value": 100 * (indexed / embedded - 1)},
            "windows at scale 2, a picture": {"value": windows / 32},
            "windows at scale 2, ms a picture": {"value": 1000 * at_two},
            "one whole picture, ms": {"value": 1000 * crop},
            "as many crops over windows": {"value": windows / 32 * crop / at_two},
        }
    finally:
        shutil.rmtree(folder)


def _embed(folder: Path, models: Models) -> None:
    for _ in embed_sources(walk_images([folder]), models.whole):
        pass


def _index(folder: Path, models: Models) -> None:
    place = Path(tempfile.mkdtemp())
    try:
        index = create_index(place / "db", models.whole.origin.space("embedding"))
        update_index([folder], models.whole, index, output="embedding")
        index.tune()
    finally:
        shutil.rmtree(place)


def _given(files: list[bytes]) -> list[ImageSource]:
    return [ImageSource(str(n), lambda file=file: file) for n, file in enumerate(files)]  # type: ignore[misc]


def _best(run: Callable[[], Any]) -> float:
    return min(_seconds(run) for _ in range(2))


def _seconds(run: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    started = time.perf_counter()
    run(*args, **kwargs)
    return time.perf_counter() - started


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit
