"""One of several server processes: takes its share of the cores and tells its parent how it fares.

Knows the pipe to its parent; `server.py` serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, MutableSequence, Sequence
from multiprocessing.connection import Connection

from amdim_serving.accepting import Shares
from amdim_serving.errors import StartError
from amdim_serving.logs import log_to_stderr
from amdim_serving.settings import Settings

_log = logging.getLogger(__name__)

READY, RELOADED, FAILED = "ready", "reloaded", "failed"
_REFRESH_S = 1.0


class Worker:
    """A server's side of the pipe to its parent.

    Args:
        listeners: Bound and shared with the other workers.
        pipe: Its other end closes when the parent dies.
        workers: How many there are.
        shares: How many connections each of them has.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], pipe: Connection, workers: int, shares: Shares
    ) -> None:
        self.listeners = list(listeners)
        self.workers = workers
        self.shares = shares
        self._pipe = pipe

    def ready(self, text: str) -> None:
        """Says that this worker serves."""
        self._say(READY, text)

    def reloaded(self) -> None:
        """Says that a client asked this worker to reload, so that the others do too."""
        self._say(RELOADED, "")

    def failed(self, text: str) -> None:
        """Says why this worker cannot start."""
        self._say(FAILED, text)

    def watch_parent(self, on_gone: Callable[[], None]) -> None:
        """Calls `on_gone` on the running event loop once there is no parent."""
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(self._pipe.fileno())
            _log.error("the parent process has gone")
            on_gone()

        loop.add_reader(self._pipe.fileno(), gone)  # it never writes: readable means closed

    def keep_fresh(self, refresh: Callable[[int], None]) -> None:
        """Calls `refresh` with the number of workers every second of the running event loop."""
        refresh(self.workers)
        asyncio.get_running_loop().call_later(_REFRESH_S, self.keep_fresh, refresh)

    def _say(self, word: str, text: str) -> None:
        with contextlib.suppress(OSError):  # without a parent there is nobody to tell
            self._pipe.send((word, text))


def run_worker(
    settings: Settings,
    number: int,
    listeners: Sequence[socket.socket],
    pipe: Connection,
    counts: MutableSequence[int],
) -> None:
    """Serves as worker `number` until its parent says stop; the process' whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent acts
    log_to_stderr(settings.log_format)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= settings.workers:
        os.sched_setaffinity(0, cores[number :: settings.workers])
    # Imported when the cores are known: numeric libraries count them once.
    from amdim_serving.server import serve

    worker = Worker(listeners, pipe, settings.workers, Shares(counts, number))
    try:
        serve(_share(settings), worker=worker)
    except StartError as error:
        _log.error("%s", error)
        worker.failed(str(error))
        raise SystemExit(1) from error


def _share(settings: Settings) -> Settings:
    """Returns the settings with this worker's part of what the whole server may hold."""
    queue_images = max(settings.max_images, settings.queue_images // settings.workers)
    inflight_bytes = max(settings.max_body_bytes, settings.inflight_bytes // settings.workers)
    return settings.model_copy(
        update={"queue_images": queue_images, "inflight_bytes": inflight_bytes}
    )
