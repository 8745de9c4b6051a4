"""BentoML: one service decodes, another encodes in adaptive batches."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from encoding import decode, encode, open_session

_POOL = int(os.environ["AMDIM_PEER_POOL"])


@bentoml.service(workers=1, traffic={"timeout": 30})
class Encoder:
    """Pixels to vectors."""

    def __init__(self) -> None:
        self.session = open_session()

    @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=1000)
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Returns (N, E) of (N, S, S, 3)."""
        return encode(self.session, list(pixels))


@bentoml.service(workers=_POOL, traffic={"timeout": 30})
class Embed:
    """Photos to vectors."""

    encoder = bentoml.depends(Encoder)

    @bentoml.api(route="/embed")
    async def embed(self, image: Path) -> dict[str, Any]:
        """Returns the photo's vector."""
        pixels = await asyncio.to_thread(lambda: decode(image.read_bytes()))
        (vector,) = await self.encoder.to_async.encode(pixels[None])
        return {"embedding": vector.tolist()}
