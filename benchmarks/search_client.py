"""What a client costs beside its server: the measurements of search.py over HTTP.

The server is `hollow.py`, a process of its own that decodes and encodes nothing: what this process
spends on an image is the client's own, whatever the machine does besides.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from load import PHOTOS, Server, collect_photos
from search_quality import Rows

from amdim_clients import AsyncEmbedClient, EmbedClient
from amdim_clients.embedders import REMOTE_LIMITS, RemoteEmbedder
from amdim_clients.pipeline import embed_sources
from amdim_clients.results import EmbedResult
from amdim_clients.walk import walk_images

HERE = Path(__file__).resolve().parent


def client(repository: Path, images: int, rounds: int = 3) -> Rows:
    """CPU milliseconds an image of the clients' process, photographs sent in bulk.

    Opening a client (some 20 ms, of which a TLS context is most) is left out.

    Args:
        repository: Whose encoder's shapes the hollow server answers with.
        images: Photographs of a round, the same ones again where there are fewer.
        rounds: The least costly counts, since what others do to the caches only adds.
    """
    with tempfile.TemporaryDirectory() as folder:
        photos = collect_photos(PHOTOS, Path(folder))
        paths = (photos * (images // len(photos) + 1))[:images]
        read = [path.read_bytes() for path in paths]
        with Server([sys.executable, str(HERE / "hollow.py"), str(repository), "amdim"]) as server:
            url = f"http://127.0.0.1:{server.port}"
            rows = _measure(url, photos, paths, read, rounds)
        size = sum(photo.stat().st_size for photo in photos) / len(photos)
        return {name: {**row, "bytes an image": size} for name, row in rows.items()}


def _measure(
    url: str, photos: Sequence[Path], paths: Sequence[Path], read: Sequence[bytes], rounds: int
) -> Rows:
    embedder = RemoteEmbedder(EmbedClient(url, limits=REMOTE_LIMITS))
    with EmbedClient(url) as blocking, asyncio.Runner() as runner:
        awaiting = AsyncEmbedClient(url)
        ways: dict[str, Callable[[], int]] = {
            "EmbedClient, paths": lambda: _count(blocking.embed(paths)),
            "EmbedClient, bytes": lambda: _count(blocking.embed(read)),
            "AsyncEmbedClient, paths": lambda: _count(runner.run(awaiting.embed(paths))),
            "AsyncEmbedClient, bytes": lambda: _count(runner.run(awaiting.embed(read))),
            "amdim embed --url": lambda: sum(
                len(outcome.records) for outcome in embed_sources(walk_images(photos), embedder)
            ),
        }
        try:
            return {name: _spent(way, rounds) for name, way in ways.items()}
        finally:
            embedder.close()
            runner.run(awaiting.close())


def _count(result: EmbedResult) -> int:
    return len(result.raise_for_errors().ok)


def _spent(way: Callable[[], int], rounds: int) -> dict[str, float]:
    way()  # connections, caches, imports
    spent: list[tuple[float, float]] = []
    for _ in range(rounds):
        cpu, wall = time.process_time(), time.perf_counter()
        done = way()
        spent.append(
            (1000 * (time.process_time() - cpu) / done, 1000 * (time.perf_counter() - wall) / done)
        )
    return {"CPU ms an image": min(spent)[0], "with the server, ms": min(wall for _, wall in spent)}
