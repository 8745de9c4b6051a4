"""Embed a folder without blocking the event loop, several requests on their way at a time.

amdim serve &
python clients/examples/embed_async.py photos/
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from amdim_clients import AsyncEmbedClient


async def main(folder: str, url: str = "http://127.0.0.1:8000") -> None:
    """Print the shapes of two outputs for all pictures of a folder."""
    paths = sorted(Path(folder).glob("*.jp*g"))
    async with AsyncEmbedClient(url) as client:
        result = await client.embed(
            paths, outputs=["embedding", "local7"], progress=lambda done: print(f"{done} done")
        )
    for name, array in result.arrays.items():
        print(f"{name}: {array.shape} {array.dtype}, {len(result.errors)} failed")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
