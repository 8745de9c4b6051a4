"""How much freed memory the process keeps: glibc's malloc told not to let that grow.

Left alone, glibc keeps as much free at the end of each thread's heap as twice the largest block it
ever gave back, up to 64 MiB: every thread that once wrote one large answer holds that for good
(measured: 14 MB a thread, reached one thread after another, which looks like a leak for 60,000
images). Large blocks are therefore taken from the system and given back to it. Knows no model.
"""

from __future__ import annotations

import ctypes
import logging
import platform

_log = logging.getLogger(__name__)

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# Above the pixels of most pictures once JPEG has scaled them down, which are best taken from the
# heap again and again; below answers of many vectors, whose cost hides that of fresh pages.
_LARGE_BYTES = 1 << 20
# What a heap may keep at its end: enough that a burst of pictures does not shrink and grow it.
_KEPT_BYTES = 8 << 20


def bound_free_memory() -> bool:
    """Fixes glibc's thresholds for this process; returns whether there was a glibc to ask.

    Set outright, neither grows by itself any more.
    """
    if platform.libc_ver()[0] != "glibc":
        _log.debug("no glibc: its thresholds are not set")
        return False
    mallopt = ctypes.CDLL(None).mallopt
    pairs = ((_M_MMAP_THRESHOLD, _LARGE_BYTES), (_M_TRIM_THRESHOLD, _KEPT_BYTES))
    return all([mallopt(name, value) == 1 for name, value in pairs])
