"""How fast images are answered under load, so that hopeless ones are refused at once.

Knows counts and times only.
"""

from __future__ import annotations

from collections import deque

_WINDOW_S = 5.0
# Less than this of load says little about the pace.
_LEAST_S = 1.0


class Pace:
    """Images a second over the last seconds of uninterrupted load.

    Forgotten when the load ends: the pace of a few slow pictures says nothing of the next ones.
    """

    def __init__(self) -> None:
        self._done: deque[tuple[float, int]] = deque()
        self._images = 0
        self._since: float | None = None
        self._last: float | None = None

    def begin(self, now: float) -> None:
        """There is load; does nothing when there already was."""
        if self._since is None:
            self._since = now

    def pause(self) -> None:
        """There is no load."""
        self._since = self._last = None
        self._done.clear()
        self._images = 0

    def done(self, images: int, now: float) -> None:
        """Images got their answer."""
        self._done.append((now, images))
        self._images += images
        while self._done[0][0] < now - _WINDOW_S:
            self._images -= self._done.popleft()[1]
        if self._since is not None and now - self._since >= _LEAST_S:
            self._last = self._images / min(_WINDOW_S, now - self._since)

    def seconds_for(self, images: int) -> float:
        """Returns how long so many images will take; 0 while that is not known."""
        return images / self._last if self._last else 0.0
