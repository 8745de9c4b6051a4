"""Silences Pillow's own warnings while pictures are decoded in several threads.

`warnings.catch_warnings` alone is not safe in threads: interleaved exits restore each other's
filters. Here the first thread in saves the filters and the last one out restores them.
Knows nothing of pictures.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_saved: warnings.catch_warnings[None] | None = None


@contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Ignore warnings raised in Pillow's modules, and only those, inside the block."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _saved
    with _lock:
        if _inside == 0:
            _saved = warnings.catch_warnings()
            _saved.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        _inside += 1


def _leave() -> None:
    global _inside, _saved
    with _lock:
        _inside -= 1
        if _inside == 0 and _saved is not None:
            _saved.__exit__(None, None, None)
            _saved = None
