"""Cancels a request's work when its client leaves.

Knows one ASGI channel. Watching costs a task, so only requests that take a while are watched.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive

from amdim_serving.bodies import ClientGoneError

# A request answered sooner ends before the work could be dropped anyway.
_PATIENCE_S = 0.05


class DisconnectWatch:
    """A context in which the current task is cancelled once the client has gone.

    Args:
        receive: Of a request whose body has been read.

    Raises:
        ClientGoneError: On leaving, when that happened.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._work = asyncio.current_task()
        self._timer = loop.call_later(_PATIENCE_S, self._start)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._gone and self._work is not None:
            self._work.uncancel()
            raise ClientGoneError from exc

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._work is not None:
            self._gone = True
            self._work.cancel()
