"""Several server processes behind one address, for machines that one process cannot fill.

The parent owns ports, signals and the metrics' folder, and answers no request; each worker is the
whole server on its share of the cores. Knows no model and no HTTP.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from prometheus_client import multiprocess

from amdim_serving.accepting import AWAY
from amdim_serving.choosing import settle
from amdim_serving.errors import StartError
from amdim_serving.server import bound_listeners
from amdim_serving.settings import Settings, metrics_shared_in
from amdim_serving.worker import FAILED, READY, RELOADED, run_worker

_log = logging.getLogger(__name__)

# A worker that lived so long is replaced at once; others after a pause that doubles.
_HEALTHY_S = 10.0
_LONGEST_PAUSE_S = 30.0
# What a worker may take beyond the times that the settings give its drain.
_GRACE_S = 5.0


@dataclass(slots=True)
class _Seat:
    """One worker's place; its process changes when it dies."""

    number: int
    process: SpawnProcess | None = None
    pipe: Connection | None = None
    started: float = 0.0
    pause_s: float = 0.0
    due: float = field(default_factory=time.monotonic)
    """When the next process may start."""
    is_ready: bool = False


def supervise(settings: Settings, *, started: float) -> None:
    """Serves with `settings.workers` processes until a signal comes and all have drained.

    SIGTERM and SIGINT drain every worker, SIGHUP reloads every worker, a dead one is replaced.

    Args:
        settings: Everything; bounds on what the server holds are split among the workers.
        started: `time.monotonic()` of the command's start, for the line that says ready.

    Raises:
        StartError: A port cannot be had, or the first workers cannot serve; the text says why.
    """
    with contextlib.ExitStack() as stack:
        listeners = stack.enter_context(bound_listeners(settings))
        port = listeners[0].getsockname()[1]
        wanted = (
            settings.grpc_port if settings.grpc_port is not None else settings.port and port + 1
        )
        grpc_port = stack.enter_context(_reserved(settings.host, wanted))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="amdim-metrics-"))
        stack.enter_context(metrics_shared_in(folder))
        # One choice for all, made while nothing else keeps the cores busy.
        shared = settle(settings).model_copy(update={"port": port, "grpc_port": grpc_port})
        _Supervisor(shared, listeners, started).run()
    _log.info("every worker has drained; bye")


class _Supervisor:
    def __init__(
        self, settings: Settings, listeners: Sequence[socket.socket], started: float
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._began = started
        self._context = multiprocessing.get_context("spawn")
        self._seats = [_Seat(number) for number in range(settings.workers)]
        # How many connections each has; a whole C int is read and written at once, so no lock.
        self._counts = self._context.RawArray("i", [AWAY] * settings.workers)
        self._said_ready = False
        self._stopping = False
        self._latest_end = float("inf")

    def run(self) -> None:
        """Keeps the workers alive until a signal comes, then sees them end."""
        with _signals() as wake:
            try:
                while not self._stopping or self._alive():
                    self._start_due()
                    self._wait(wake)
            finally:
                for seat in self._alive():  # only after an error
                    assert seat.process is not None
                    seat.process.kill()
                    seat.process.join()

    def _alive(self) -> list[_Seat]:
        return [seat for seat in self._seats if seat.process is not None]

    def _start_due(self) -> None:
        now = time.monotonic()
        for seat in self._seats:
            if seat.process is None and seat.due <= now and not self._stopping:
                seat.pipe, theirs = self._context.Pipe()
                process = self._context.Process(
                    target=run_worker,
                    args=(self._settings, seat.number, self._listeners, theirs, self._counts),
                    name=f"amdim-worker-{seat.number}",
                )
                process.start()
                theirs.close()
                seat.process = process
                seat.started, seat.is_ready = now, False

    def _wait(self, wake: socket.socket) -> None:
        """Waits for a signal, a word of a worker, a death, or the time of the next start."""
        now = time.monotonic()
        moments = [seat.due for seat in self._seats if seat.process is None and not self._stopping]
        timeout = max(0.0, min([*moments, self._latest_end, now + 60.0]) - now)
        watched: list[socket.socket | Connection | int] = [wake]
        for seat in self._alive():
            assert seat.process is not None and seat.pipe is not None
            watched += [seat.process.sentinel, seat.pipe]
        woken = connection.wait(watched, timeout)
        if wake in woken:
            for number in wake.recv(64):
                self._on_signal(number)
        for seat in self._alive():
            assert seat.process is not None and seat.pipe is not None
            if seat.pipe in woken:
                self._listen(seat)
            if seat.process.sentinel in woken:
                self._bury(seat)
        if time.monotonic() > self._latest_end:
            raise StartError("the workers did not drain in time")

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._send(signal.SIGHUP)
            return
        if not self._stopping:
            _log.info("draining every worker")
        self._stop()

    def _stop(self) -> None:
        """Drains every worker; the second time, ends it."""
        self._stopping = True
        allowed_s = self._settings.drain_delay + self._settings.drain_timeout + _GRACE_S
        self._latest_end = min(self._latest_end, time.monotonic() + allowed_s)
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals, *, but: _Seat | None = None) -> None:
        for seat in self._alive():
            # Before it is ready a worker has no handler: it would die of a hangup.
            if seat is not but and (seat.is_ready or number == signal.SIGTERM):
                assert seat.process is not None and seat.process.pid is not None
                with contextlib.suppress(ProcessLookupError):
                    os.kill(seat.process.pid, number)

    def _listen(self, seat: _Seat) -> bool:
        """Takes a word of a worker's, if there is one; its end is seen by its sentinel."""
        assert seat.pipe is not None
        try:
            if not seat.pipe.poll():
                return False
            word, text = seat.pipe.recv()
        except (EOFError, OSError):
            return False
        if word == READY:
            seat.is_ready = True
            _log.info("worker %d: %s", seat.number, text)
            if not self._said_ready and all(one.is_ready for one in self._seats):
                self._said_ready = True
                self._say_ready()
        elif word == RELOADED:
            self._send(signal.SIGHUP, but=seat)
        elif word == FAILED and not self._said_ready:
            raise StartError(text)
        return True

    def _bury(self, seat: _Seat) -> None:
        """Notes that a worker has ended, and when another may start in its place."""
        assert seat.process is not None and seat.pipe is not None
        seat.process.join()
        code, pid = seat.process.exitcode, seat.process.pid
        while self._listen(seat):  # its last words
            pass
        seat.pipe.close()
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
        lived_s = time.monotonic() - seat.started
        seat.process = seat.pipe = None
        self._counts[seat.number] = AWAY
        if self._stopping:
            if code:
                _log.error("worker %d ended with %s while draining", seat.number, code)
            return
        if not self._said_ready:
            raise StartError(f"worker {seat.number} ended with {code} before it was ready")
        doubled = min(_LONGEST_PAUSE_S, max(1.0, 2 * seat.pause_s))
        seat.pause_s = 0.0 if lived_s > _HEALTHY_S else doubled
        seat.due = time.monotonic() + seat.pause_s
        _log.error("worker %d ended with %s: another starts in its place", seat.number, code)

    def _say_ready(self) -> None:
        host, port = self._listeners[0].getsockname()[:2]
        _log.info(
            "ready on http://%s:%d (gRPC %s) in %.2f s: %d workers",
            host,
            port,
            self._settings.grpc_port,
            time.monotonic() - self._began,
            len(self._seats),
        )


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """Turns SIGTERM, SIGINT and SIGHUP into bytes on a socket."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    fd = signal.set_wakeup_fd(theirs.fileno())
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(fd)
        for number, previous in before.items():
            signal.signal(number, previous)
        ours.close()
        theirs.close()


@contextlib.contextmanager
def _reserved(host: str, port: int) -> Iterator[int]:
    """Holds a port that every worker's gRPC server binds; nothing listens on it here.

    Raises:
        StartError: The port is taken.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as holder:
        try:
            # Without SO_REUSEPORT first: workers of another server must not share it unnoticed.
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                address = probe.getsockname()
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(address)
        except OSError as error:
            raise StartError(
                f"port {port} on {host} is in use; name one with --grpc-port"
            ) from error
        yield holder.getsockname()[1]
