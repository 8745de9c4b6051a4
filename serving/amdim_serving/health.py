"""Whether one served model still gives the vectors that its certificate vouches for.

Found out when somebody asks: a recent good batch speaks for a model; when it was idle, after a
failed batch and after a failed canary, one canary has to. Knows no model, no queue and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from amdim_serving.batcher import BatcherStats
from amdim_serving.errors import CanaryError, RequestError, ServingError
from amdim_serving.metrics import Metrics

_log = logging.getLogger(__name__)

# After so long without a good batch, a canary has to speak for the model.
_IDLE_S = 10.0
_CANARY_TIMEOUT_S = 10.0
# Requests to a model that failed try it anew so often, at most; what comes between is refused.
_PAUSE_S = 1.0
_REFUSED = "This model does not reproduce its canaries; the others serve."


class Health:
    """The verdict on one model, and how it is renewed.

    Args:
        model: Its name, for the log and the metrics.
        stats: Of its batcher.
        is_proved: Whether the engine is the one whose canaries were run.
        run_canary: Sends one canary the way of every image and returns its cosine; raises
            `ServingError` where it does not reproduce.
        metrics: Told each verdict.
    """

    def __init__(
        self,
        model: str,
        stats: BatcherStats,
        *,
        is_proved: Callable[[], bool],
        run_canary: Callable[[], Awaitable[float]],
        metrics: Metrics,
    ) -> None:
        self.is_good = True
        """The last verdict; what was loaded has reproduced its canaries."""
        self._model = model
        self._stats = stats
        self._is_proved = is_proved
        self._run_canary = run_canary
        self._metrics = metrics
        self._checking: asyncio.Task[None] | None = None
        self._retry_at = 0.0

    async def check(self, patience_s: float | None = None) -> bool:
        """Renews the verdict where it is due, and returns it.

        Args:
            patience_s: After so long the last verdict is returned and the check goes on by
                itself; not given: it is waited for.
        """
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().create_task(self._check())
        checking = self._checking  # one for all who ask meanwhile; none of them ends it by leaving
        await asyncio.wait({checking}, timeout=patience_s)
        if checking.done():
            checking.result()  # a fault of ours is no verdict
        return self.is_good

    async def require(self) -> None:
        """Lets a request pass to the model, unless it failed and does so still.

        Raises:
            RequestError: engine_unavailable.
        """
        if not self.is_good and time.monotonic() >= self._retry_at:
            await self.check()
        if not self.is_good:
            raise RequestError("engine_unavailable", _REFUSED)

    async def _check(self) -> None:
        if self.is_good and self._is_spoken_for():
            return
        was_good = self.is_good
        self.is_good = await self._reproduces()
        self._retry_at = time.monotonic() + _PAUSE_S
        self._metrics.verdict(self._model, self.is_good)
        if self.is_good and not was_good:
            _log.info("%s reproduces its canary again", self._model)

    def _is_spoken_for(self) -> bool:
        is_recent = time.monotonic() - self._stats.last_good < _IDLE_S
        return is_recent and not self._stats.last_failed and self._is_proved()

    async def _reproduces(self) -> bool:
        """Runs one canary."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(_CANARY_TIMEOUT_S):
                self._metrics.canary(self._model, await self._run_canary())
        except TimeoutError:
            # One that only waited for its turn, while others were answered, says nothing.
            if self.is_good and self._stats.last_good > started:
                return True
            self._log_failure(f"no answer in {_CANARY_TIMEOUT_S:.0f} s")
            return False
        except ServingError as error:
            if isinstance(error, CanaryError):
                self._metrics.canary(self._model, error.cosine)
            self._log_failure(str(error))
            return False
        return True

    def _log_failure(self, reason: str) -> None:
        if self.is_good:  # the first of a row
            _log.error("%s fails on its canary: %s", self._model, reason)
