"""Shares the connections of one listening socket among several processes, about equally.

Knows sockets and the event loop; no HTTP. Left to themselves, whichever process wakes first takes
every connection that waits, and a client that keeps its connections keeps that process's core busy
while the others idle.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, MutableSequence

_log = logging.getLogger(__name__)

AWAY = 2**31 - 1
"""In `Shares`: a process that takes no connections."""
# So long another process may take what is its turn; then whoever saw it takes it.
_COURTESY_S = 0.002
# After an error such as too many open files.
_PAUSE_S = 1.0


class Shares:
    """How many connections each process has open, as each of them last said.

    Args:
        counts: One number a process, in memory that all of them see.
        number: This process's place in it.
    """

    def __init__(self, counts: MutableSequence[int], number: int) -> None:
        self._counts = counts
        self._number = number

    def publish(self, connections: int) -> None:
        """Says how many this process has."""
        self._counts[self._number] = connections

    def is_anothers_turn(self) -> bool:
        """Whether some process has fewer than this one."""
        return self._counts[self._number] > min(self._counts)


class Acceptor:
    """Takes connections one at a time, those first that no other process should have.

    Args:
        listener: Listening, not blocking, shared with the other processes.
        make_protocol: Of each connection.
        connections: Returns how many are open here.
        shares: How many are open elsewhere.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        connections: Callable[[], int],
        shares: Shares,
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._connections = connections
        self._shares = shares
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to take connections."""
        self._publish()
        self._loop.add_reader(self._listener, self._on_waiting)

    def stop(self) -> None:
        """Takes no more; those taken stay."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._listener)
        self._shares.publish(AWAY)

    def _publish(self) -> None:
        self._shares.publish(self._connections() + len(self._opening))

    def _on_waiting(self) -> None:
        self._publish()
        if self._shares.is_anothers_turn():
            self._resume_after(_COURTESY_S)
        else:
            self._take()

    def _resume_after(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._listener, self._on_waiting)
        self._take()  # should it be there still, nobody else wanted it

    def _take(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            _log.error("no connection can be taken: %s", error.strerror)
            self._resume_after(_PAUSE_S)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opening = self._loop.connect_accepted_socket(self._make_protocol, connection)
        task: asyncio.Task[object] = self._loop.create_task(opening)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        self._publish()
