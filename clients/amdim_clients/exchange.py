"""One request's life: sent, answered, waited for, sent again, split or given up.

The decisions both clients share, without sending or sleeping: each turn a client sends the batch
that is `next`, and tells what came back.
"""

from __future__ import annotations

from collections.abc import Mapping

from amdim_clients.errors import (
    IMAGE_MESSAGES,
    ClientError,
    OverloadedError,
    ServerError,
    TransportError,
)
from amdim_clients.inputs import ImageFailure, RequestBatch
from amdim_clients.results import ResultBuilder
from amdim_clients.retries import RetryPolicy
from amdim_clients.wire import EmbedBody, EmbedOptions, parse_embed, parse_error

_TOO_MUCH_FOR_ONE_REQUEST = frozenset({"body_too_large", "too_many_images"})


class Exchange:
    """The state of one batch on its way; finished when `next` is None."""

    def __init__(
        self, batch: RequestBatch, options: EmbedOptions, policy: RetryPolicy, result: ResultBuilder
    ) -> None:
        """Start with the whole batch to send; answers go into `result`."""
        self._pending = [batch]
        self._options = options
        self._policy = policy
        self._result = result
        self._attempt = 0

    @property
    def next(self) -> RequestBatch | None:
        """The batch to send now, or None when everything is answered."""
        return self._pending[-1] if self._pending else None

    def body(self) -> EmbedBody:
        """The body of the batch that is `next`."""
        return EmbedBody(self._pending[-1], self._options)

    def received(self, status: int, headers: Mapping[str, str], content: bytes) -> float:
        """Take an answer in; returns seconds to wait before the next turn.

        Raises:
            ServerError: The server refused for good.
            ResponseError, DigestMismatchError: The answer cannot be used.
        """
        batch = self._pending[-1]
        if status == 200:
            self._result.add(batch, parse_embed(content, len(batch.indices)))
            self._finish_batch()
            return 0.0
        error = parse_error(status, content)
        wait = self._policy.wait_s(self._attempt, status, headers)
        if wait is not None:
            self._attempt += 1
            return wait
        if self._settle(batch, error):
            return 0.0
        raise error

    def broke(self, error: Exception) -> float:
        """Take a failed connection in; returns seconds to wait before the next turn.

        Raises:
            TransportError: It failed on every attempt.
        """
        wait = self._policy.wait_s(self._attempt)
        if wait is None:
            raise TransportError(no_answer(error)) from error
        self._attempt += 1
        return wait

    def _settle(self, batch: RequestBatch, error: ServerError) -> bool:
        """Whether the refusal concerns single images, or only so many of them at once."""
        if len(batch.indices) > 1 and error.code in _TOO_MUCH_FOR_ONE_REQUEST:
            self._pending[-1:] = reversed(batch.halves())
            self._attempt = 0
            return True
        if len(batch.indices) == 1 and error.code in (*IMAGE_MESSAGES, "body_too_large"):
            self._result.fail(batch.indices[0], ImageFailure(error.code, error.message))
            self._finish_batch()
            return True
        if error.status in (429, 503):
            raise OverloadedError(error.status, error.code, error.message, error.request_id)
        return False

    def _finish_batch(self) -> None:
        self._pending.pop()
        self._attempt = 0


def no_answer(error: Exception) -> str:
    """What a caller reads when nothing listens where a server should."""
    return f"no answer from the server ({error}): check its address, or start one by amdim serve"


def timed_out(error: Exception, timeout_s: float) -> ClientError:
    """What a caller sees when the server did not answer in time; it is not asked again."""
    return TransportError(f"the server did not answer within {timeout_s:g} s: {error}")
