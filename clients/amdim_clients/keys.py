"""How pictures are named: an absolute path, or `<pack>#<place in it>`. Knows no files."""

from __future__ import annotations

import os
from collections.abc import Iterator


def is_below(key: str, root: str) -> bool:
    """Whether a picture's key is `root` itself, in its folder, or in it as a pack."""
    return key == root or key.startswith(below_prefixes(root))


def below_prefixes(root: str) -> tuple[str, str]:
    """What keys below `root` begin with: as a folder and as a pack."""
    return root.rstrip(os.sep) + os.sep, root + "#"


def enclosing(key: str) -> Iterator[str]:
    """The key itself and every pack it may lie in; names may hold `#` themselves."""
    yield key
    at = key.find("#")
    while at >= 0:
        yield key[:at]
        at = key.find("#", at + 1)


def roots_of(key: str) -> Iterator[str]:
    """Everything the key is at or below: itself, the packs it may lie in, and all folders."""
    yield from enclosing(key)
    at = key.find(os.sep)
    while at >= 0:
        yield key[:at] or os.sep
        at = key.find(os.sep, at + 1)
