"""The gateway that takes new requests, and its replacement by another without a dropped one.

Knows neither HTTP nor signals. A request belongs to the gateway that it began with, to its end;
a gateway that was replaced is closed when its last request has left.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from amdim_serving.errors import CanaryError, ProviderError, RequestError, ServingError
from amdim_serving.gateway import Gateway

_log = logging.getLogger(__name__)

Reopen = Callable[[Gateway], Gateway]
"""Opens what the settings of a gateway name now, reporting to the same metrics."""

_POLL_S = 0.05
# Fixed sentences: what went wrong in full is in the log.
_WHY: tuple[tuple[type[Exception], str], ...] = (
    (CanaryError, "The new version does not reproduce its canaries; the old one goes on serving."),
    (ProviderError, "The new version would run elsewhere than told; the old one goes on serving."),
    (Exception, "The new version cannot be loaded; the old one goes on serving."),
)


class Deployment:
    """Holds the current gateway.

    Args:
        gateway: The first one, not started.
        reopen: Opens its successor, on a thread; None: it is never replaced.
    """

    def __init__(self, gateway: Gateway, reopen: Reopen | None = None) -> None:
        self.current = gateway
        self.on_loaded: Callable[[], None] | None = None
        """Called after a client had a reload done."""
        self._reopen = reopen
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Starts the gateway; at the end drains it and every one it replaced."""
        await self.current.service.start()
        self.current.announce()
        try:
            yield
        finally:
            self.current.draining = True  # no reload begins from here on
            async with self._reloading:
                closing = [self.current.close(), *self._retiring]
                await asyncio.gather(*closing)

    async def load(self, model: str, key: bytes | None) -> bool:
        """Reloads for whoever holds an admin key; see `reload`.

        Raises:
            RequestError: unknown_route where there is no admin key, unauthorized, unknown_model,
                and as `reload`.
        """
        if not self.current.admin_keys:
            raise RequestError("unknown_route")
        if not self.current.is_admin(key):
            raise RequestError("unauthorized")
        name = self.current.service.spec.name
        if model not in (name, f"{name}_image", f"{name}_windows"):  # one encoder, loaded together
            raise RequestError("unknown_model")
        is_other = await self.reload()
        if self.on_loaded is not None:
            self.on_loaded()
        return is_other

    async def reload(self) -> bool:
        """Loads what the settings name now and lets it serve; returns whether that is another.

        The API keys are read anew too.

        Raises:
            RequestError: reload_failed, and the old gateway goes on; draining.
        """
        async with self._reloading:
            old = self.current
            if old.draining or self._reopen is None:
                raise RequestError("draining")
            started = time.monotonic()
            try:
                new = await asyncio.to_thread(self._reopen, old)
            except Exception as error:  # whatever it is, the old one goes on
                is_known = isinstance(error, ServingError)
                _log.error(
                    "reload failed, version %s goes on: %s",
                    old.version,
                    error,
                    exc_info=None if is_known else error,
                )
                old.metrics.reloads.labels("failed").inc()
                raise RequestError("reload_failed", _why(error)) from error
            if old.draining:  # the signal came while it loaded
                await new.close()
                raise RequestError("draining")
            is_other = new.identity != old.identity
            if is_other:
                await self._replace(old, new)
            else:
                old.keys, old.admin_keys = new.keys, new.admin_keys
                await new.close()
            took_s = time.monotonic() - started
            said = "serves" if is_other else "still serves: nothing newer is published"
            _log.info("reloaded in %.2f s: version %s %s", took_s, self.current.version, said)
            old.metrics.reloads.labels("replaced" if is_other else "unchanged").inc()
            return is_other

    def drain(self) -> None:
        """From now on the server says that it wants no new work; it still does what comes."""
        self.current.draining = True

    async def _replace(self, old: Gateway, new: Gateway) -> None:
        new.bodies = old.bodies  # what all bodies hold together stays bounded
        await new.service.start()
        new.announce()
        self.current = new
        task = asyncio.get_running_loop().create_task(self._retire(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, old: Gateway) -> None:
        """Closes a gateway once its requests have left, each of which has its own deadline."""
        limits = old.settings.limits
        latest = time.monotonic() + limits.body_seconds + limits.deadline_seconds
        while old.requests and time.monotonic() < latest:
            await asyncio.sleep(_POLL_S)
        await old.close()
        _log.info("version %s is closed", old.version)


def _why(error: Exception) -> str:
    return next(text for kind, text in _WHY if isinstance(error, kind))
