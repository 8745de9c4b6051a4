"""When to send a request again, and how long to wait first.

Knows no transport and never sleeps: the clients do, each in its own way.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

# Overloaded, a dead upstream, draining: the same request may succeed a moment later.
_RETRIED_STATUSES = frozenset({429, 502, 503})


@dataclass(frozen=True)
class RetryPolicy:
    """Waits grow from `first_wait_s` by two, at random within half; Retry-After overrules them."""

    max_retries: int = 4
    first_wait_s: float = 0.25
    max_wait_s: float = 30.0  # also the longest Retry-After that is obeyed
    _random: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def wait_s(
        self, attempt: int, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> float | None:
        """Seconds before the next attempt, or None when the failure stands.

        Args:
            attempt: How many attempts failed before this one.
            status: The HTTP status, None where the connection failed.
            headers: The answer's headers.
        """
        if attempt >= self.max_retries:
            return None
        if status is not None and status not in _RETRIED_STATUSES:
            return None
        backoff = min(self.max_wait_s, self.first_wait_s * 2.0**attempt)
        wait = backoff * (0.5 + self._random.random() / 2)
        asked = _retry_after_s((headers or {}).get("retry-after"))
        if asked is None:
            return wait
        # A server that asks for more patience than allowed is given up on at once.
        return max(asked, wait) if asked <= self.max_wait_s else None


def _retry_after_s(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
