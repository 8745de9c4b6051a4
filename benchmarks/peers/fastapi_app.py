"""A plain FastAPI service: each request decodes and encodes its photo on a thread of a pool."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from encoding import decode, encode, open_session
from fastapi import FastAPI, Request
from fastapi.responses import ORJSONResponse

app = FastAPI()
session = open_session()
pool = ThreadPoolExecutor(int(os.environ["AMDIM_PEER_POOL"]))


def _embed(data: bytes) -> list[float]:
    vector: list[float] = encode(session, [decode(data)])[0].tolist()
    return vector


@app.post("/embed")
async def embed(request: Request) -> Any:
    """Returns the photo's vector."""
    data = await request.body()
    vector = await asyncio.get_running_loop().run_in_executor(pool, _embed, data)
    return ORJSONResponse({"embedding": vector})


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_app:app",
        port=int(os.environ["AMDIM_PEER_PORT"]),
        workers=int(os.environ["AMDIM_PEER_WORKERS"]),
        log_level="warning",
    )
