"""Runs the gateway as a process: binds, loads, serves, drains on SIGTERM, exits 0.

Owns the signals, because uvicorn alone would close its listeners before anyone was told.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator

import grpc
import uvicorn
from starlette.types import ASGIApp

from amdim_serving.accepting import Acceptor
from amdim_serving.app import create_app
from amdim_serving.deployment import Deployment, Reopen
from amdim_serving.errors import RequestError, StartError
from amdim_serving.gateway import Gateway, build_gateway, reopen_gateway
from amdim_serving.kserve_grpc import create_grpc_server
from amdim_serving.memory import bound_free_memory
from amdim_serving.metrics_port import MetricsPort
from amdim_serving.protocol import protocol_with
from amdim_serving.settings import Settings
from amdim_serving.worker import Worker

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(
    settings: Settings,
    *,
    started: float | None = None,
    open_gateway: Callable[[Settings], Gateway] = build_gateway,
    reopen: Reopen = reopen_gateway,
    worker: Worker | None = None,
) -> None:
    """Serves until a signal comes; returns once every accepted request has its answer.

    SIGTERM and SIGINT drain, SIGHUP loads the model version published last.

    Args:
        settings: Everything.
        started: `time.monotonic()` of the command's start, for the line that says ready.
        open_gateway: Called once the port is ours; loads what is served.
        reopen: Loads its successor, when that is asked for.
        worker: Given where this process is one of several.

    Raises:
        StartError: The port or the model cannot be had; the text says why.
    """
    started = time.monotonic() if started is None else started
    bound_free_memory()
    with contextlib.ExitStack() as stack:
        listeners = worker.listeners if worker else stack.enter_context(bound_listeners(settings))
        deployment = Deployment(open_gateway(settings), reopen)
        app: ASGIApp = create_app(deployment)
        if settings.metrics_port is not None:
            port = listeners[1].getsockname()[1]
            app = MetricsPort(app, port, deployment.current.metrics.render)
        config = uvicorn.Config(
            app,
            http=protocol_with(settings.limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=int(settings.drain_timeout) + 1,
        )
        server = _DrainingServer(config, deployment, started, worker)
        server.run(sockets=listeners)
    _log.info("drained; bye")


class _DrainingServer(uvicorn.Server):
    """uvicorn's server with signals that drain first."""

    def __init__(
        self,
        config: uvicorn.Config,
        deployment: Deployment,
        started: float,
        worker: Worker | None = None,
    ) -> None:
        super().__init__(config)
        self._worker = worker
        self._signals = _SIGNALS if worker is None else (signal.SIGTERM,)
        self._deployment = deployment
        self._settings = deployment.current.settings
        self._began = started
        self._grpc: grpc.aio.Server | None = None
        self._acceptor: Acceptor | None = None
        self._drain_task: asyncio.Task[None] | None = None
        self._reloads: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts listening and says so, with what serves and how long it took."""
        grpc_port = self._bind_grpc()  # before anything that would have to be undone
        shared = self._worker is not None
        await super().startup(sockets[1:] if sockets and shared else sockets)
        if self._worker is not None and sockets:
            self._acceptor = self._accept_in_turn(sockets[0], self._worker)
        if self._grpc is not None:
            await self._grpc.start()
        # What was loaded stays: collections need not walk it, an eighth of the loop's CPU.
        gc.collect()
        gc.freeze()
        service = self._deployment.current.service
        spec, info = service.spec, service.engine.info
        address = sockets[0].getsockname() if sockets else ("", 0)
        for other in (sockets or [])[1:]:
            _log.info("metrics on http://%s:%d/metrics", *other.getsockname()[:2])
        serves = (
            f"{spec.name} version {spec.version}, {info.engine} {info.precision} "
            f"on {info.provider}, {info.threads} threads"
        )
        took_s = time.monotonic() - self._began
        if self._worker is not None:
            self._join_workers(self._worker, f"ready in {took_s:.2f} s: {serves}")
            return
        _log.info(
            "ready on http://%s:%d (gRPC %s) in %.2f s: %s",
            *address[:2],
            grpc_port or "off",
            took_s,
            serves,
        )

    def _join_workers(self, worker: Worker, text: str) -> None:
        """Takes part with the other workers, for as long as there is a parent."""
        worker.watch_parent(self._on_signal)
        worker.keep_fresh(self._deployment.current.metrics.refresh)
        self._deployment.on_loaded = worker.reloaded
        worker.ready(text)

    def _accept_in_turn(self, listener: socket.socket, worker: Worker) -> Acceptor:
        """Takes this worker's share of the connections; uvicorn would take all that wait."""

        def make_protocol() -> asyncio.Protocol:
            protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )
            return protocol

        connections = self.server_state.connections
        acceptor = Acceptor(listener, make_protocol, lambda: len(connections), worker.shares)
        acceptor.start()
        return acceptor

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drains HTTP and gRPC together."""
        if self._acceptor is not None:
            self._acceptor.stop()
        grace_s = self._settings.drain_timeout
        stops = [] if self._grpc is None else [self._grpc.stop(grace_s)]
        await asyncio.gather(super().shutdown(sockets), *stops)

    def _bind_grpc(self) -> int:
        """Makes the gRPC server and returns its port; 0 without one.

        Raises:
            StartError: The port was named and is taken.
        """
        settings = self._settings
        wanted = settings.grpc_port
        port = wanted if wanted is not None else (settings.port and settings.port + 1)
        server = create_grpc_server(self._deployment, is_shared=self._worker is not None)
        try:
            bound: int = server.add_insecure_port(f"{settings.host}:{port}")
        except RuntimeError as error:
            if wanted is not None:
                raise StartError(f"port {port} on {settings.host} is in use") from error
            _log.warning("port %d is in use: serving without gRPC; name one with --grpc-port", port)
            return 0
        self._grpc = server
        return bound

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes SIGTERM and SIGINT: the first drains, a second one while draining ends it.

        SIGHUP reloads.
        """
        loop = asyncio.get_running_loop()
        for number in self._signals:
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        try:
            yield
        finally:
            for number in (*self._signals, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._drain_task is not None:
            self.should_exit = self.force_exit = True
            return
        self._drain_task = asyncio.get_running_loop().create_task(self._drain())

    def _on_hangup(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        with contextlib.suppress(RequestError):  # the deployment has logged why
            await self._deployment.reload()

    async def _drain(self) -> None:
        """Says that it is not ready, waits for that to be heard, then stops listening."""
        self._deployment.drain()
        _log.info("draining")
        await asyncio.sleep(self._settings.drain_delay)
        self.should_exit = True


@contextlib.contextmanager
def bound_listeners(settings: Settings) -> Iterator[list[socket.socket]]:
    """Binds the port of the routes, then the metrics' own where there is one.

    Raises:
        StartError: A port cannot be had; the text says why.
    """
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(_bound(settings.host, settings.port))]
        if settings.metrics_port is not None:
            host = settings.metrics_host or settings.host
            listeners.append(stack.enter_context(_bound(host, settings.metrics_port)))
        yield listeners


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Binds before anything is loaded, so that a taken port is told at once."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"cannot listen on {host}") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(2048)  # a second server on this port fails at once too
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else "cannot be bound"
            raise StartError(f"port {port} on {host} {reason}") from error
        listener.setblocking(False)
        yield listener
